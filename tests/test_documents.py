"""Finding, reading and splitting documents: real files of every kind, written by the libraries that make them."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import docx
import pptx
import pytest
from fpdf import FPDF
from hypothesis import given
from hypothesis import strategies as st

from llma_rag.errors import DocumentError
from llma_rag.retrieval import Document, discovery, read_documents, reading, split_documents
from llma_rag.retrieval.discovery import find_files
from llma_rag.retrieval.reading import SUFFIXES, extract
from tests.letters import LetterEmbedder


def write_pdf(path, pages, password=None):
    made = FPDF()
    made.set_font("Helvetica", size=12)
    for text in pages:
        made.add_page()
        if text:
            made.multi_cell(0, 8, text)
    if password is not None:
        made.set_encryption(owner_password="owner", user_password=password)
    made.output(str(path))


def write_docx(path):
    made = docx.Document()
    made.add_heading("Ferry", 0)
    made.add_heading("Times", 1)
    made.add_paragraph("The boat leaves at seven.")
    made.add_paragraph("Bring cash.", style="List Bullet")
    table = made.add_table(rows=1, cols=2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "Adults", "4 euro"
    made.save(str(path))


def write_pptx(path):
    made = pptx.Presentation()
    for title, body in (("Plans", "Build a pier"), ("Costs", "Two million")):
        slide = made.slides.add_slide(made.slide_layouts[1])
        slide.shapes.title.text, slide.placeholders[1].text = title, body
    made.slides[1].notes_slide.notes_text_frame.text = "Ask the mayor"
    group = made.slides[0].shapes.add_group_shape()
    group.shapes.add_textbox(0, 0, 100, 100).text_frame.text = "In a group"
    made.save(str(path))


def write_collection(folder):
    """Write one readable file of each kind; return the kinds."""
    folder.mkdir(exist_ok=True)
    (folder / "notes.txt").write_text("The museum opens at nine.\n")
    (folder / "guide.md").write_text("# Guide\n\n## Museum\n\nGroups book in advance.\n")
    (folder / "page.html").write_text(
        "<html><head><title>Harbour</title><style>p{}</style></head><body><nav>Home</nav>"
        "<h2>Boats</h2><p>They leave <b>daily</b>, see <a href='x'>times</a>.</p><script>x()</script></body></html>"
    )
    write_pdf(folder / "rules.pdf", ["No dogs on the pier.", "Swimming is allowed\nfrom the beach only."])
    write_docx(folder / "ferry.docx")
    write_pptx(folder / "plans.pptx")
    (folder / "fares.csv").write_text('name;price\nadult;4,20\n"child; small";2\n')
    (folder / "data.json").write_text('{"boats": [{"name": "Ann", "seats": 12}], "open": true}')
    (folder / "log.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    (folder / "tool.py").write_text("def ring_the_bell():\n    return 'dong'\n")
    (folder / "alt.txt").write_bytes(
        "Das Café schließt um fünf Uhr, die Brücke öffnet früh.".encode("latin-1")
    )
    return sorted(path.suffix for path in folder.iterdir())


def texts(path):
    return [(one.page, one.format, one.text) for one in extract(path.read_bytes(), path)]


def test_every_kind_gives_its_text(tmp_path):
    write_collection(tmp_path)
    assert texts(tmp_path / "notes.txt") == [(None, "text", "The museum opens at nine.\n")]
    assert texts(tmp_path / "tool.py") == [(None, "text", "def ring_the_bell():\n    return 'dong'\n")]
    assert texts(tmp_path / "guide.md")[0][1] == "markdown"
    assert texts(tmp_path / "page.html") == [
        (None, "markdown", "# Harbour\n\n## Boats\n\nThey leave **daily**, see times.")
    ]
    assert texts(tmp_path / "rules.pdf") == [
        (1, "text", "No dogs on the pier."),
        (2, "text", "Swimming is allowed\nfrom the beach only."),
    ]
    assert texts(tmp_path / "ferry.docx") == [
        (
            None,
            "markdown",
            "# Ferry\n\n# Times\n\nThe boat leaves at seven.\n\n- Bring cash.\n\n| Adults | 4 euro |",
        )
    ]
    assert texts(tmp_path / "plans.pptx") == [
        (1, "markdown", "# Plans\n\nBuild a pier\n\nIn a group"),
        (2, "markdown", "# Costs\n\nTwo million\n\nAsk the mayor"),
    ]
    assert texts(tmp_path / "fares.csv") == [
        (None, "text", "name: adult; price: 4,20\nname: child; small; price: 2")
    ]
    assert texts(tmp_path / "data.json") == [
        (None, "text", "boats[0].name: Ann\nboats[0].seats: 12\nopen: true")
    ]
    assert texts(tmp_path / "log.jsonl") == [(None, "text", "a: 1\n\na: 2")]
    assert texts(tmp_path / "alt.txt") == [
        (None, "text", "Das Café schließt um fünf Uhr, die Brücke öffnet früh.")
    ]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-32", "cp1252", "cp1251", "shift_jis"]
)
def test_encodings_are_told(tmp_path, encoding):
    text = {
        "cp1251": "Музей открывается в девять часов утра и закрывается вечером.",
        "shift_jis": "博物館は九時に開きます。切符は船の上で現金だけで売られています。",
    }.get(encoding, "Das Café öffnet früh – “sehr früh”.")
    content = b"\xff\xfe" + text.encode("utf-16-le") if encoding == "utf-16-le-bom" else text.encode(encoding)
    (tmp_path / "a.txt").write_bytes(content)
    assert texts(tmp_path / "a.txt")[0][2] == text


def test_line_ends_are_kept_so_that_ranges_fit_the_file(tmp_path):
    for content in (b"one\r\ntwo\r\n", "één\r\ntwee\r".encode("latin-1")):
        (tmp_path / "windows.txt").write_bytes(content)
        assert texts(tmp_path / "windows.txt")[0][2] == content.decode("latin-1")


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.pdf", lambda path: write_pdf(path, ["x"], password="secret"), "is encrypted"),
        ("a.pdf", lambda path: write_pdf(path, ["", ""]), "has 2 pages without text"),
        ("a.pdf", lambda path: path.write_bytes(b"%PDF-1.4\nbroken"), r"is damaged or not a \.pdf file"),
        ("a.docx", lambda path: path.write_bytes(b"PK\x03\x04broken"), r"is damaged or not a \.docx file"),
        ("a.pptx", lambda path: path.write_bytes(b""), r"is damaged or not a \.pptx file"),
        ("a.json", lambda path: path.write_text("{"), r"is damaged or not a \.json file"),
        ("a.json", lambda path: path.write_text("[" * 100_000 + "]" * 100_000), "is damaged"),
        ("a.csv", lambda path: path.write_text('a,b\n"x'), r"is damaged or not a \.csv file"),
        ("a.html", lambda path: path.write_text("<div>" * 20_000 + "x"), "is damaged"),
        ("a.txt", lambda path: path.write_bytes(b"a\0b"), "is not text: it holds null bytes"),
        (
            "a.txt",
            lambda path: path.write_bytes(b"") is None or os.truncate(path, 65 * 2**20),
            "has over 67108864 bytes",
        ),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(DocumentError, match=message) as caught:
        read_documents([tmp_path / name])
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_a_pdf_without_a_user_password_is_read(tmp_path):
    write_pdf(tmp_path / "a.pdf", ["Free to read."], password="")
    assert texts(tmp_path / "a.pdf")[0][2] == "Free to read."


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_UNPACKED_BYTES", 1_000_000)
    for name in ("bomb.docx", "bomb.pptx"):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("word/document.xml", bytes(2_000_000))
        with pytest.raises(DocumentError, match="unpacks to 2000000 bytes"):
            texts(tmp_path / name)


def test_an_archive_with_too_much_markup_is_refused(tmp_path, monkeypatch):
    write_docx(tmp_path / "a.docx")
    monkeypatch.setattr(reading, "MAX_MARKUP_BYTES", 1_000)
    with pytest.raises(DocumentError, match="bytes of XML; at most 1000 are read"):
        texts(tmp_path / "a.docx")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    for name in ("a.txt", "zero.txt"):
        with pytest.raises(DocumentError, match="is not a regular file"):
            read_documents(tmp_path / name)
        with pytest.raises(DocumentError, match="is not a regular file"):
            reading.load(tmp_path / name)
    assert find_files(tmp_path, SUFFIXES).files == []


def test_rows_and_lines_end_where_the_format_says(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": "one\u2028two"}\n')
    assert texts(tmp_path / "a.jsonl")[0][2] == "a: one\u2028two"
    rows = "n;t\n" + "1;plain\n" * 9000 + '2;"He said ""hi; there"""\n3;' + "x" * 200_000 + "\n"
    (tmp_path / "a.csv").write_text(rows)
    lines = texts(tmp_path / "a.csv")[0][2].splitlines()
    assert lines[9000] == 'n: 2; t: He said "hi; there"'
    assert lines[9001] == "n: 3; t: " + "x" * 200_000


def test_a_json_with_too_many_values_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_JSON_VALUES", 10)
    (tmp_path / "a.json").write_text(json.dumps(list(range(11))))
    with pytest.raises(DocumentError, match="has over 10 values"):
        texts(tmp_path / "a.json")


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    write_pdf(tmp_path / "a.pdf", ["x"])
    monkeypatch.setitem(__import__("sys").modules, "pypdf", None)
    with pytest.raises(DocumentError, match=r"a library that is missing \(pypdf\); .*llma-rag\[documents\]"):
        texts(tmp_path / "a.pdf")


def test_surrogates_in_a_text_are_replaced(tmp_path):
    (tmp_path / "a.json").write_text('{"x": "a\\ud800b"}')
    assert texts(tmp_path / "a.json")[0][2] == "x: a\ufffdb"


@given(st.binary(max_size=300), st.sampled_from(sorted(SUFFIXES)))
def test_any_bytes_are_read_or_refused(content, suffix):
    try:
        documents = extract(content, Path("/x/file" + suffix))
    except DocumentError as error:
        assert "\n" not in str(error)
    else:
        for one in documents:
            one.text.encode()


@given(st.data(), st.sampled_from(["rules.pdf", "ferry.docx", "plans.pptx"]))
def test_a_damaged_file_of_an_office_is_read_or_refused(collection, data, name):
    content = bytearray((collection / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        extract(bytes(content), collection / name)
    except DocumentError as error:
        assert "\n" not in str(error)


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collection")
    write_collection(folder)
    return folder


# -- finding --------------------------------------------------------------------------------------------


def test_files_and_folders_are_found_once_each_in_a_stable_order(tmp_path):
    (tmp_path / "sub" / ".git").mkdir(parents=True)
    for name in ("b.txt", "a.MD", "sub/c.txt", "sub/.git/config.txt", ".hidden.md", "image.png"):
        (tmp_path / name).write_text("x")
    (tmp_path / "again").symlink_to(tmp_path / "sub")
    (tmp_path / "same.txt").symlink_to(tmp_path / "b.txt")
    found = find_files([tmp_path, tmp_path / "b.txt", tmp_path / ".hidden.md"], SUFFIXES)
    assert [path.name for path in found.files] == ["a.MD", "c.txt", "b.txt", ".hidden.md"]
    assert found.skipped == []


def test_links_that_lead_nowhere_or_back_are_named(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("x")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "missing.txt")
    (tmp_path / "self.txt").symlink_to(tmp_path / "self.txt")
    found = find_files([tmp_path], SUFFIXES)
    assert [path.name for path in found.files] == ["a.txt"]
    assert {Path(one.path).name: one.reason for one in found.skipped} == {
        "up": f"is a symbolic link loop, back to {tmp_path.resolve()}",
        "gone.txt": "is a symbolic link to nothing",
        "self.txt": "is a symbolic link loop",
    }


def test_a_deep_tree_is_walked(tmp_path):
    folder = tmp_path
    for _ in range(1100):
        folder = folder / "d"
        folder.mkdir()
    (folder / "a.txt").write_text("x")
    assert len(discovery.find_files([tmp_path], SUFFIXES).files) == 1
    (folder / "a.txt").unlink()
    while folder != tmp_path:  # pytest cannot remove so deep a tree
        folder.rmdir()
        folder = folder.parent


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.txt", "there is no file or folder"),
        ("image.png", "is not a document"),
        ("", "holds no document"),
    ],
)
def test_a_path_that_is_no_document_is_an_error(tmp_path, name, message):
    (tmp_path / "image.png").write_bytes(b"x")
    with pytest.raises(DocumentError, match=message):
        read_documents([tmp_path / name])


# -- splitting ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text_format", ["markdown", "text"])
@given(text=st.text("abc .é\r\n#-=", max_size=400))
def test_passages_are_where_they_say_and_short_enough(text_format, text):
    count_tokens = LetterEmbedder().count_tokens
    chunks = split_documents(
        [Document(text, "a", 7, text_format)], count_tokens, chunk_tokens=20, overlap_tokens=3
    )
    for one in chunks:
        assert text[one.start : one.end] == one.text
        assert count_tokens(one.text) <= 20
        assert one.page == 7
    covered = {place for one in chunks for place in range(one.start, one.end)}
    assert all(place in covered or text[place].isspace() for place in range(len(text)))


def test_passages_know_the_headings_above_them():
    text = (
        "Before\r\n\r\n# One\r\n\r\nfirst words here\r\n\r\n## Two *em*\r\n\r\nsecond words here\r\n\r\n"
        "```\r\n# no heading\r\n```\r\n\r\n### Three\r\n\r\nthird words\r\n\r\nFour\r\n====\r\n\r\nfourth words\r\n"
    )
    chunks = split_documents(
        [Document(text, "a.md", format="markdown")],
        LetterEmbedder().count_tokens,
        chunk_tokens=6,
        overlap_tokens=0,
    )
    found = {
        word: one.headings
        for one in chunks
        for word in ("first", "second", "third", "fourth", "Before")
        if word in one.text
    }
    assert found == {
        "Before": (),
        "first": ("One",),
        "second": ("One", "Two *em*"),
        "third": ("One", "Two *em*", "Three"),
        "fourth": ("Four",),
    }


def test_a_title_names_file_and_headings():
    chunks = split_documents(
        [Document("# Hours\n\nAt nine.", "/docs/city/museum.md", format="markdown")],
        LetterEmbedder().count_tokens,
    )
    assert chunks[0].title == "city/museum.md > Hours"
    assert chunks[0].embedded_text == "city/museum.md > Hours\n# Hours\n\nAt nine."
