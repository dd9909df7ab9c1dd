"""The web page in a real browser, over a real server whose model says what the test wants."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from llma_rag.conversation import ChatSettings
from llma_rag.conversation.chatbot import REFUSAL
from llma_rag.retrieval import Chunk, Document, StoredDocument
from llma_rag.retrieval.reading import MAX_FILE_BYTES
from tests.scripted_engine import scripted_engine
from tests.serving import MUSEUM, PIER, served_process, serving, until

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
    try:
        page.goto(served.url)
        yield page
    finally:
        context.close()
    assert [text for text in told if not any(part in text for part in may_tell)] == []
    assert [url for url in asked if not url.startswith((served.url, "blob:"))] == []


@pytest.fixture
def served(tmp_path):
    with serving(scripted_engine(ANSWER), tmp_path) as one:
        yield one


def ask(page, question=QUESTION):
    """Ask, and wait for the whole answer."""
    figures = page.locator(".turn .figures")
    before = figures.count()
    page.locator("#question").fill(question)
    page.keyboard.press("Enter")
    figures.nth(before).wait_for()


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
        with page.expect_download() as saving:
            page.locator("#save").click()
        text = saving.value.path().read_text()
        assert text.startswith(f"## {QUESTION}\n\nIt says: {PIER} [1]")
        assert "[1] pier.txt" in text
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.locator("#copy").click()
        page.locator("#status").get_by_text("Copied.").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == text
        page.reload()  # the conversation is found again
        page.locator(".answer mark").nth(1).wait_for()
        ask(page, "And why?")
        assert page.locator(".turn").count() == 2
        served.engine.runner.step_s = 0.2
        page.locator("#question").fill(QUESTION)
        page.keyboard.press("Enter")
        page.locator(".turn:nth-child(3) .answer mark").wait_for()
        assert page.locator("#stop").is_visible()  # marked while the answer still grows
        page.locator(".turn:nth-child(3) .figures").wait_for()
        served.engine.runner.step_s = 0
        page.locator("#new-conversation").click()
        page.locator("#question").fill("Zzz?")  # nothing in the documents
        page.keyboard.press("Enter")
        page.locator(".answer").get_by_text(REFUSAL).wait_for()
        page.locator("#mode").select_option("chat")
        ask(page, "Zzz?")
        assert page.locator(".answer").last.inner_text() == f"(Not from the documents.) {ANSWER}"


def test_the_race_shows_two_equal_texts_and_what_references_save(chromium, served):
    served.engine.runner.step_s = 0.01
    with opened(chromium, served) as page:
        page.locator("#question").fill(QUESTION)
        page.locator("#race").click()
        page.locator(".verdict[data-same=true]").wait_for()
        assert [lane.inner_text() for lane in page.locator(".lane .answer").all()] == [ANSWER, ANSWER]
        verdict = page.locator(".verdict").inner_text()
        assert float(verdict.split()[0]) > 1
        assert "times as fast" in verdict
        assert "the texts are equal" in verdict
        assert page.locator("#spoken").inner_text().startswith(verdict.split("\n")[0])
    assert served.conversations.list("here") == []  # a race is no turn


def test_documents_are_uploaded_asked_about_and_removed(chromium, served, tmp_path):
    good, bad, refused = tmp_path / "ferry.txt", tmp_path / "broken.pdf", tmp_path / "program.exe"
    good.write_text("The ferry leaves at nine.")
    bad.write_text("no PDF")
    refused.write_text("x")
    with opened(chromium, served, may_tell=["400"]) as page:
        page.locator("#files").set_input_files([good, bad, refused])
        documents = page.locator("#document-list")
        documents.get_by_text("1 passage").nth(2).wait_for()
        documents.get_by_text("is damaged or not a .pdf file").wait_for()
        page.locator("#uploads").get_by_text("is not a document").wait_for()
        page.get_by_label("Dismiss program.exe").click()
        _drop(page, {"clock.md": "The clock stopped at noon.", "large.txt": MAX_FILE_BYTES + 1})
        documents.get_by_text("clock.md").wait_for()
        page.locator("#uploads").get_by_text("more than 64 MiB").wait_for()
        page.locator("#holdings").get_by_text("4 documents, 4 passages").wait_for()
        ask(page, "When does the ferry leave?")
        page.locator(".sources").get_by_text("ferry.txt").click()
        page.locator("#reader-text mark").get_by_text("The ferry leaves at nine.").wait_for()
        page.keyboard.press("Escape")
        page.once("dialog", lambda dialog: dialog.dismiss())
        page.get_by_label("Remove ferry.txt").click()
        assert documents.get_by_text("ferry.txt").count() == 1
        page.once("dialog", lambda dialog: dialog.accept())
        page.get_by_label("Remove ferry.txt").click()
        page.get_by_label("Remove ferry.txt").wait_for(state="detached")
        assert "The ferry leaves at nine." not in [hit.text for hit in served.store.search("ferry", 5)]


def _drop(page, files):
    """Drop files by name on the page: their text, or how many bytes they have."""
    page.evaluate(
        """files => {
            const dataTransfer = new DataTransfer();
            for (const [name, content] of Object.entries(files)) {
                const parts = [typeof content === "string" ? content : new Uint8Array(content)];
                dataTransfer.items.add(new File(parts, name));
            }
            document.querySelector("main").dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
        }""",
        files,
    )


def test_an_answer_can_be_stopped_and_conversations_renamed_and_deleted(chromium, tmp_path):
    engine = scripted_engine("word " * 400)
    with serving(engine, tmp_path) as served, opened(chromium, served) as page:
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
        page.locator(".turn").first.wait_for(state="detached")
        page.go_back()  # to the conversation
        page.locator(".turn").first.wait_for()
        page.go_forward()
        page.locator(".turn").first.wait_for(state="detached")
        item.get_by_text("Piers").click()
        page.locator(".turn").wait_for()
        page.once("dialog", lambda dialog: dialog.accept())
        page.get_by_label("Delete Piers").click()
        item.wait_for(state="detached")
        assert page.locator(".turn").count() == 0
        assert served.conversations.list("here") == []


def test_text_of_documents_names_and_the_model_is_never_html(chromium, tmp_path):
    with serving(scripted_engine(HOSTILE), tmp_path, chat=ChatSettings(min_similarity=-1)) as served:
        source = "/x/<img src=x onerror=alert(1)>.txt"
        before = "🙂 so \r\n<b>this</b> 🙂\r\n"
        pages = [Document("🙂", source, 1), Document(f"{before}{HOSTILE}\r\n", source, 2)]
        start = len(before)
        passage = Chunk(HOSTILE, source, start, start + len(HOSTILE), page=2)
        vectors = served.store.embedder.embed([HOSTILE])
        served.store.put_document(StoredDocument(source, "x", 1), pages, [passage], vectors)
        with opened(chromium, served) as page:
            page.on("dialog", lambda dialog: pytest.fail(dialog.message))
            ask(page, "<b>Closed</b>?")
            assert page.locator(".answer").text_content() == HOSTILE
            page.locator(".answer mark").first.click()
            page.locator("#reader").wait_for()
            assert page.locator("#reader-text mark").text_content() == HOSTILE
            assert page.locator("#reader-text div").nth(1).text_content() == pages[1].text
            assert page.locator("#documents").is_hidden()  # the two share the right side
            page.locator("#show-documents").click()
            page.locator("#document-list").get_by_text("alert(1)").wait_for()
            assert page.locator("#reader").is_hidden()
            assert page.locator(".asked").inner_text() == "<b>Closed</b>?"
            assert page.title() == "llma_rag"
            for tag in ("img", "b", "a", "script"):
                assert page.locator(f"#turns {tag}, aside {tag}, #ask {tag}").count() == 0, tag


def test_a_server_with_a_key_asks_for_it(chromium, tmp_path):
    with (
        serving(scripted_engine(ANSWER), tmp_path, api_key="secret") as served,
        opened(chromium, served, may_tell=["401"]) as page,
    ):
        page.locator("#key").fill("sec")
        page.keyboard.press("Escape")  # what is half typed is not used
        page.locator("#trouble").get_by_text("choose Key to give it").wait_for()
        page.locator("#show-key").click()
        page.locator("#key").fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_text("The server refused this key.").wait_for()
        page.locator("#key").fill("secret")
        page.keyboard.press("Enter")
        page.locator("#model").get_by_text("scripted").wait_for()
        page.locator("#document-list").get_by_text("pier.txt").wait_for()
        ask(page)
        assert page.locator(".answer").inner_text() == ANSWER
        page.reload()
        page.locator(".answer").wait_for()  # the key is known


def test_what_is_wrong_is_told(chromium, tmp_path):
    with serving(scripted_engine(ANSWER), tmp_path, queue=1) as served:
        with opened(chromium, served, may_tell=["400", "404", "429", "ERR_", "Failed to load"]) as page:
            trouble = page.locator("#trouble")
            ask(page)
            served.http.delete(f"/v1/conversations/{served.conversations.list('here')[0].id}")
            page.locator("#question").fill(QUESTION)
            page.locator("#send").click()
            trouble.get_by_text("This conversation was deleted elsewhere.").wait_for()
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
    try:
        return httpx.get(f"{served.url}/healthz").is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def demo():
    """The demo model and its documents."""
    with served_process("--demo") as (_, url):
        yield SimpleNamespace(url=url)


@pytest.mark.parametrize(("width", "height"), [(1280, 860), (390, 844)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible_and_good_to_look_at(chromium, demo, tmp_path, width, height, scheme):
    for kept in httpx.get(f"{demo.url}/v1/conversations").json()["data"]:
        httpx.delete(f"{demo.url}/v1/conversations/{kept['id']}")
    folder = Path(os.environ.get("LLMA_RAG_SCREENSHOTS", tmp_path))
    size = {"width": width, "height": height}
    with opened(chromium, demo, viewport=size, color_scheme=scheme, reduced_motion="reduce") as page:
        page.set_default_timeout(120_000)
        is_phone = width < 900
        if is_phone:
            page.locator("#show-documents").click()
            page.locator("#document-list li").first.wait_for()
            assert page.evaluate("document.querySelector('main').inert")  # the panel covers it
            _check(page)
            page.keyboard.press("Escape")
            assert page.evaluate("document.activeElement.id") == "show-documents"
        ask(page, "What does error code E4 mean on the Morvello B2?")
        if is_phone:
            page.locator("#show-conversations").click()
            page.locator("#conversation-list button").first.click()
            page.locator("#conversations").wait_for(state="hidden")  # and shows what was chosen
            page.locator(".turn .figures").wait_for()
        page.locator("#race").click()
        page.locator(".verdict[data-same=true]").wait_for()
        assert page.locator("#status").inner_text() == ""
        page.evaluate("scrollTo(0, document.body.scrollHeight)" if is_phone else "scrollTo(0, 0)")
        page.screenshot(path=folder / f"race-{width}-{scheme}.png")
        _check(page)
        page.locator("#question").focus()
        for _ in range(40):  # the keyboard reaches the marked words
            page.keyboard.press("Shift+Tab")
            if page.evaluate("document.activeElement.matches('.turn:first-child mark')"):
                break
        page.keyboard.press("Enter")
        marked = page.locator(".turn:first-child mark").first.text_content()
        page.locator("#reader-text mark").wait_for()
        assert page.locator("#reader-text mark").text_content() == marked
        assert page.evaluate("document.activeElement.id") == "reader"
        page.screenshot(path=folder / f"document-{width}-{scheme}.png")
        _check(page)
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.tagName") == "MARK"


def _check(page):
    """Nothing scrolls sideways, and axe finds nothing serious."""
    from axe_playwright_python.sync_playwright import Axe

    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    found = Axe().run(page).response["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    assert serious == [], json.dumps(serious, indent=1)[:3000]
