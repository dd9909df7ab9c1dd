"""The report of a comparison: complete, readable without network, and harmless whatever the texts say."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llma_rag.bench.baselines import Measurement
from llma_rag.bench.compare import Comparison, SampleComparison
from llma_rag.bench.data import Sample
from llma_rag.bench.report import html_report, marked_pieces, png_report
from llma_rag.provenance import CopiedSpan, as_references, copied_spans
from tests.test_cli import run, write_samples

NASTY = "The ferry <script>alert('x')</script> leaves the northern pier at nine & returns at ten."
MODES = ("references", "greedy", "transformers", "prompt_lookup")
ENVIRONMENT = {
    "model": "tiny <b>",
    "device": "cpu",
    "dtype": "float32",
    "width": 8,
    "versions": {"torch": "2"},
}


def compared(number, modes=MODES):
    drafted = Measurement(0.5, 1.0, 4, 9, [3, 0, 2], list(range(8)))
    plain = Measurement(0.5, 2.5, 8, 0, [0] * 7, list(range(8)))
    text = f"They say: {NASTY} Number {number}."
    docs = ["Nothing that is copied.", f"It stands here. {NASTY} Or so."]
    return SampleComparison(
        sample=Sample(f"sample/{number} $<$", f"When does ferry {number} <leave>?", docs),
        prompt_token_ids=[1, 2, 3],
        modes={mode: drafted if mode in ("references", "prompt_lookup") else plain for mode in modes},
        difference={"tokens_before": 3, "top2_gap": 0.25} if number == 1 else None,
        text=text,
        copied_spans=copied_spans(text, as_references(docs)),
    )


def comparison(samples=3, modes=MODES):
    return Comparison(ENVIRONMENT, [compared(number, modes) for number in range(samples)], 2**30)


def test_the_page_has_every_sample_every_mode_and_the_environment():
    page = html_report(comparison())
    for number in range(3):
        assert f"sample/{number}" in page
        assert f"When does ferry {number} &lt;leave&gt;?" in page
    for word in (
        *MODES,
        "tiny &lt;b&gt;",
        "torch 2",
        "1024 MiB",
        "after 3 tokens",
        "How many drafted tokens",
    ):
        assert word in page
    assert "2.50×" in page  # greedy over references


def test_copied_words_are_marked_with_their_document():
    page = html_report(comparison(1))
    assert '<mark class="s1" title="document 2, characters 15 to 105">' in page
    assert "Nothing that is copied." in page


def test_nothing_in_the_page_comes_from_elsewhere_or_runs():
    page = html_report(comparison())
    assert "<script" not in page
    for reference in ("src=", "@import", "url(http", '<link rel="stylesheet"'):
        assert reference not in page


@pytest.mark.parametrize("modes", [MODES, ("references", "greedy")])
def test_the_picture_is_a_png(modes):
    assert png_report(comparison(2, modes)).startswith(b"\x89PNG")
    assert "sample/1" in html_report(comparison(2, modes))


@given(text=st.text("abc <&", min_size=1, max_size=60), data=st.data())
def test_pieces_make_up_the_text_and_spans_keep_their_words(text, data):
    place = st.integers(0, len(text))
    ranges = data.draw(st.lists(st.tuples(place, place).map(sorted), max_size=5))
    spans = [CopiedSpan(start, end, number, 0, end - start) for number, (start, end) in enumerate(ranges)]
    pieces = marked_pieces(text, spans)
    assert "".join(piece for piece, _ in pieces) == text
    done = 0
    for piece, span in pieces:
        inside = [one for one in spans if one.start <= done and done + len(piece) <= one.end]
        assert span == (inside[0] if inside else None)
        done += len(piece)


def test_compare_writes_page_picture_and_data(capsys, tmp_path, tiny_folder):
    data = write_samples(tmp_path / "data.jsonl", 2)
    files = [tmp_path / name for name in ("report.html", "report.png", "out.json")]
    arguments = ("--data", data, "--model", tiny_folder, "--dtype", "float32", "--max-tokens", 12)
    outputs = ("--html", files[0], "--png", files[1], "--json", files[2])
    code, _, _ = run(capsys, "compare", *arguments, *outputs)
    assert code == 0
    page, samples = files[0].read_text(encoding="utf-8"), json.loads(files[2].read_text())["samples"]
    assert page.count('class="sample"') == len(samples) == 2
    assert files[1].read_bytes().startswith(b"\x89PNG")
    for sample in samples:
        for mode in sample["modes"].values():
            assert len(mode["accepted_lengths"]) in (mode["forward_passes"] - 1, mode["forward_passes"])
            assert sum(mode["accepted_lengths"]) == mode["accepted"]
            assert mode["accepted"] == len(mode["token_ids"]) - mode["forward_passes"]


def test_what_cannot_be_written_or_drawn_is_told_before_measuring(capsys, tmp_path, monkeypatch):
    code, _, err = run(capsys, "compare", "--data", "x", "--html", tmp_path / "none" / "report.html")
    assert (code, err.count("\n")) == (2, 1)
    assert "there is no folder" in err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run(capsys, "compare", "--data", "x", "--png", tmp_path / "report.png")
    assert code == 2
    assert "pip install 'llma-rag[report]'" in err


@pytest.mark.browser
def test_a_browser_shows_the_whole_report_and_asks_for_nothing(tmp_path):
    from playwright.sync_api import sync_playwright

    path = tmp_path / "report.html"
    path.write_text(html_report(comparison(12)), encoding="utf-8")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    told, asked = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 700})
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        assert page.locator("article.sample").count() == 12
        assert page.locator("#samples tbody tr").count() == 12
        assert page.locator("#modes tbody tr").count() == len(MODES)
        assert page.locator("article.sample mark[title]").count() == 12
        svg = page.locator(".charts svg")
        assert svg.bounding_box()["width"] > 800
        assert "sample/11 $<$" in svg.text_content()
        page.locator("#samples a").last.click()
        assert page.url.endswith("#sample-12")
        page.locator("details.copied summary").first.click()
        assert page.locator("details[open] .document").first.is_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.screenshot(path=tmp_path / "report.png", full_page=True)
        browser.close()
    assert told == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
