"""The web page in a real browser, over a real server whose model says what the test wants."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager

import pytest

from llma_rag.conversation import ChatSettings
from llma_rag.retrieval import Document, StoredDocument
from tests.letters import chunk
from tests.scripted_engine import scripted_engine
from tests.serving import MUSEUM, PIER, serving, until

pytestmark = pytest.mark.browser

ANSWER = f"It says: {PIER} 🙂 Also: {MUSEUM}"
QUESTION = "When is the northern pier closed?"
HOSTILE = '<script>document.title="taken"</script> <a href="javascript:alert(1)">\u202eClosed</a> <img src=x onerror=alert(2)>'


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(chromium, served, *, may_tell=(), **options):
    """Open the page; afterwards nothing must have been asked of other hosts, nor told on the console."""
    context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    page = context.new_page()
    page.set_default_timeout(15_000)
    told, asked = [], []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(served.url)
    yield page
    context.close()
    assert [text for text in told if not any(part in text for part in may_tell)] == []
    assert [url for url in asked if not url.startswith((served.url, "blob:"))] == []


@pytest.fixture
def served(tmp_path):
    with serving(scripted_engine(ANSWER), tmp_path) as one:
        yield one


def ask(page, question=QUESTION):
    page.locator("#question").fill(question)
    page.keyboard.press("Enter")
    page.locator(".turn .figures dd").last.wait_for()


def last_turn(served):
    (kept,) = served.conversations.list("here")
    return served.http.get(f"/v1/conversations/{kept.id}").json()["turns"][-1]


def test_copied_words_are_marked_and_lead_to_their_place(chromium, served):
    with opened(chromium, served) as page:
        ask(page)
        assert page.locator(".answer").inner_text() == ANSWER
        turn = last_turn(served)
        shown = page.locator(".answer mark")
        assert shown.count() == len(turn["spans"]) == 2
        for number, span in enumerate(turn["spans"]):
            assert shown.nth(number).inner_text() == "".join(list(ANSWER)[span["start"] : span["end"]])
            source = next(one for one in turn["sources"] if one["number"] == span["number"])
            assert source["source"] in shown.nth(number).get_attribute("title")
        shown.first.click()
        page.locator("#reader").wait_for()
        assert page.locator("#reader-name").inner_text() == "pier.txt"
        assert page.locator("#reader-text mark").inner_text() == PIER
        page.keyboard.press("Escape")
        assert page.locator("#reader").is_hidden()
        assert page.evaluate("document.activeElement.tagName") == "MARK"
        page.reload()  # the conversation is found again
        page.locator(".answer mark").nth(1).wait_for()
        ask(page, "And why?")
        assert page.locator(".turn").count() == 2


def test_the_race_shows_two_equal_texts_and_what_references_save(chromium, served):
    served.engine.runner.step_s = 0.01
    with opened(chromium, served) as page:
        page.locator("#question").fill(QUESTION)
        page.locator("#race").click()
        page.locator(".verdict[data-same=true]").wait_for()
        assert "times as fast" in page.locator(".verdict").inner_text()
        assert [lane.inner_text() for lane in page.locator(".lane .answer").all()] == [ANSWER, ANSWER]
        times = float(page.locator(".verdict").inner_text().split()[0])
        assert times > 1
    assert served.conversations.list("here") == []  # a race is no turn


def test_documents_are_uploaded_asked_about_and_removed(chromium, served, tmp_path):
    good, bad, refused = tmp_path / "ferry.txt", tmp_path / "broken.pdf", tmp_path / "program.exe"
    good.write_text("The ferry leaves at nine.")
    bad.write_text("no PDF")
    refused.write_text("x")
    with opened(chromium, served, may_tell=["400"]) as page:
        page.locator("#files").set_input_files([good, bad, refused])
        documents = page.locator("#document-list")
        documents.get_by_text("1 passages").nth(2).wait_for()
        documents.get_by_text("is damaged or not a .pdf file").wait_for()
        assert "is not a document" in page.locator("#uploads").inner_text()
        ask(page, "When does the ferry leave?")
        page.locator(".sources").get_by_text("ferry.txt").click()
        page.locator("#reader-text mark").get_by_text("The ferry leaves at nine.").wait_for()
        page.keyboard.press("Escape")
        page.get_by_label("Remove ferry.txt").click()
        page.get_by_label("Remove ferry.txt").wait_for(state="detached")
        assert "The ferry leaves at nine." not in [hit.text for hit in served.store.search("ferry", 5)]


def test_an_answer_can_be_stopped_and_conversations_renamed_and_deleted(chromium, tmp_path):
    engine = scripted_engine("word " * 400)
    with serving(engine, tmp_path) as served, opened(chromium, served) as page:
        ask_first = served.chat("When?", max_tokens=1)
        assert ask_first.status_code == 200
        engine.runner.step_s = 0.1
        page.locator("#question").fill("Go on, at length, about the pier.")
        page.keyboard.press("Enter")
        page.locator(".answer").get_by_text("word").wait_for()
        page.locator("#stop").click()
        page.get_by_text("Stopped; this turn is not kept.").wait_for()
        until(lambda: engine.unfinished_requests == 0, seconds=3)
        engine.runner.step_s = 0
        ask(page)
        item = page.locator("#conversation-list li")
        item.get_by_text(QUESTION).wait_for()
        page.get_by_label(f"Rename {QUESTION}").click()
        page.get_by_label("New title").fill("Piers")
        page.keyboard.press("Enter")
        item.get_by_text("Piers").wait_for()
        page.locator("#new-conversation").click()
        assert page.locator(".turn").count() == 0
        item.get_by_text("Piers").click()
        page.locator(".turn").wait_for()
        page.get_by_label("Delete Piers").click()
        item.wait_for(state="detached")
        assert page.locator(".turn").count() == 0
        assert served.conversations.list("here") == []


def test_text_of_documents_names_and_the_model_is_never_html(chromium, tmp_path):
    with serving(scripted_engine(HOSTILE), tmp_path, chat=ChatSettings(min_similarity=-1)) as served:
        source = "/x/<img src=x onerror=alert(1)>.txt"
        stored = StoredDocument(source, "x", 1)
        made = [chunk(HOSTILE, source)]
        vectors = served.store.embedder.embed([HOSTILE])
        served.store.put_document(stored, [Document(HOSTILE, source)], made, vectors)
        with opened(chromium, served) as page:
            page.on("dialog", lambda dialog: pytest.fail(dialog.message))
            ask(page, "<b>Closed</b>?")
            assert page.locator(".answer").text_content() == HOSTILE
            page.locator(".answer mark").first.click()
            page.locator("#reader").wait_for()
            assert page.locator("#reader-text mark").text_content() == HOSTILE
            assert page.locator(".asked").inner_text() == "<b>Closed</b>?"
            assert page.title() == "llma_rag"
            for tag in ("img", "b", "main a", "aside a", "body script"):
                assert page.locator(tag).count() == 0, tag


def test_a_server_with_a_key_asks_for_it(chromium, tmp_path):
    with (
        serving(scripted_engine(ANSWER), tmp_path, api_key="secret") as served,
        opened(chromium, served, may_tell=["401"]) as page,
    ):
        for key in ("wrong", "secret"):
            page.locator("#key").fill(key)
            page.keyboard.press("Enter")
        page.locator("#model").get_by_text("scripted").wait_for()
        ask(page)
        assert page.locator(".answer").inner_text() == ANSWER


def test_what_is_wrong_is_told(chromium, tmp_path):
    with serving(scripted_engine(ANSWER), tmp_path, queue=1) as served:
        with opened(chromium, served, may_tell=["400", "429", "ERR_", "Failed to load"]) as page:
            trouble = page.locator("#trouble")
            page.locator("#question").fill("why " * 9000)
            page.locator("#send").click()
            trouble.get_by_text("a prompt of").wait_for()
            served.engine.runner.step_s = 0.3
            body = {"model": "scripted", "prompt": "go on", "stream": True, "draft": False}
            with served.http.stream("POST", "/v1/completions", json=body) as response:
                pieces = response.iter_bytes()
                next(pieces)
                page.locator("#question").fill(QUESTION)
                page.locator("#send").click()
                trouble.get_by_text("The server is busy. Try again in").wait_for()
                assert page.locator("#question").input_value() == QUESTION  # nothing is lost
            served.stop()
            until(lambda: not _answers(served))
            page.locator("#send").click()
            trouble.get_by_text("The server does not answer.").wait_for()


def _answers(served):
    import httpx

    try:
        return httpx.get(f"{served.url}/healthz").is_success
    except httpx.TransportError:
        return False


def test_it_is_accessible_and_good_to_look_at_on_every_screen(chromium, served):
    from axe_playwright_python.sync_playwright import Axe

    for width, scheme in ((1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")):
        with opened(chromium, served, viewport={"width": width, "height": 900}, color_scheme=scheme) as page:
            ask(page)
            if width < 1000:
                page.locator("#show-documents").click()
            page.locator("#document-list li").first.wait_for()
            page.locator("#race").click()
            page.locator(".verdict[data-same=true]").wait_for()
            page.locator(".answer mark").first.press("Enter")
            page.locator("#reader-text mark").wait_for()
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            assert page.evaluate("document.activeElement.id") == "reader"
            found = Axe().run(page).response["violations"]
            serious = [one for one in found if one["impact"] in ("serious", "critical")]
            assert serious == [], json.dumps(serious, indent=1)[:3000]
