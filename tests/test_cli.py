"""The commands as processes and in process, over a tiny model: output, JSON, and one-line errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from llma_rag.cli import app as cli
from llma_rag.cli import printing


def run(capsys, *arguments):
    """Run the command in this process; return exit code, stdout and stderr."""
    code = 0
    before = sys.argv
    sys.argv = ["llma-rag", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def documents(tmp_path):
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "museum.md").write_text("# Museum\n\nThe museum opens at nine. Groups book in advance.\n")
    (folder / "boat.txt").write_text("The boat leaves from the northern pier at seven every morning.\n")
    return folder


@pytest.fixture
def store(capsys, tmp_path, documents):
    assert run(capsys, "index", documents, "--store", tmp_path / "store")[0] == 0
    return tmp_path / "store"


def test_index_counts_and_replaces(capsys, tmp_path, documents, store):
    (documents / "boat.txt").write_text("The boat leaves at eight.\n")
    code, out, _ = run(capsys, "index", documents, "--store", store, "--json", tmp_path / "out.json")
    assert code == 0
    assert "2 documents, 2 passages indexed (2 replaced)" in " ".join(out.split())
    assert json.loads((tmp_path / "out.json").read_text()) == {
        "documents": 2,
        "passages": 2,
        "replaced_passages": 2,
        "total_passages": 2,
    }


def test_ask_answers_from_the_store(capsys, tmp_path, store, tiny_folder):
    output = tmp_path / "out.json"
    code, out, _ = run(
        capsys,
        "ask",
        "When does the boat leave?",
        "--store",
        store,
        "--model",
        tiny_folder,
        "--max-tokens",
        12,
        "--passages",
        1,
        "--json",
        output,
    )
    assert code == 0
    assert "boat.txt" in out
    assert "forward passes" in out
    data = json.loads(output.read_text())
    assert data["passages"][0]["source"].endswith("boat.txt")
    assert len(data["answer"]["token_ids"]) == 12


def test_ask_without_references_gives_the_same_text(capsys, tmp_path, store, tiny_folder):
    texts = []
    for option in ("--references", "--no-references"):
        run(
            capsys,
            "ask",
            "When?",
            "--store",
            store,
            "--model",
            tiny_folder,
            "--max-tokens",
            30,
            option,
            "--json",
            tmp_path / "out.json",
        )
        texts.append(json.loads((tmp_path / "out.json").read_text())["answer"]["token_ids"])
    assert texts[0] == texts[1]


def write_samples(path, count=2):
    rows = [
        {
            "query": f"What is {n}?",
            "docs": [f"Number {n} is a number.", f"{n} follows {n - 1}."],
            "result": {"text": "x"},
        }
        for n in range(count)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_compare_measures_every_mode(capsys, tmp_path, tiny_folder):
    data, output = write_samples(tmp_path / "data.jsonl", 3), tmp_path / "out.json"
    code, out, _ = run(
        capsys,
        "compare",
        "--data",
        data,
        "--model",
        tiny_folder,
        "--dtype",
        "float32",
        "--max-tokens",
        24,
        "--skip",
        1,
        "--limit",
        2,
        "--repeats",
        2,
        "--json",
        output,
    )
    assert code == 0
    assert "references identical to greedy: 2 of 2" in out
    result = json.loads(output.read_text())
    summary = result["summary"]
    assert summary["samples"] == summary["identical"] == 2
    assert summary["identical_transformers"] == 2  # fp32
    assert "identical_prompt_lookup" in summary
    assert (
        set(summary["speedup_decode"])
        == set(summary["speedup_total"])
        == {"greedy", "transformers", "prompt_lookup"}
    )
    assert summary["tokens_per_pass"] >= 1
    assert [sample["id"] for sample in result["samples"]] == ["1", "2"]
    for sample in result["samples"]:
        assert sample["difference"] is None
        for mode in ("references", "greedy", "transformers", "prompt_lookup"):
            measured = sample["modes"][mode]
            assert measured["prefill_s"] > 0
            assert measured["forward_passes"] + measured["accepted"] == len(measured["token_ids"]), mode
            assert 0 <= measured["accepted"] <= measured["drafted"], mode
    assert result["environment"]["dtype"] == "float32"
    assert result["peak_memory_bytes"] > 10**8


def test_compare_without_baselines(capsys, tmp_path, tiny_folder):
    data = write_samples(tmp_path / "data.jsonl")
    arguments = ("--data", data, "--model", tiny_folder, "--max-tokens", 5, "--baselines", "none")
    code, _out, _ = run(capsys, "compare", *arguments, "--json", tmp_path / "out.json")
    assert code == 0
    assert set(json.loads((tmp_path / "out.json").read_text())["samples"][0]["modes"]) == {
        "references",
        "greedy",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("", "holds 0 samples"),
        ("{]", "line 1 of"),
        ('{"query": "x"}', "not an object with `query` and `docs`"),
        ('{"query": "x", "docs": "y"}', "must have a text `query` and a list of texts"),
        ("3", "line 1 of"),
    ],
)
def test_bad_data_is_one_line(capsys, tmp_path, content, message):
    path = tmp_path / "data.jsonl"
    if content is not None:
        path.write_text(content)
    code, _, err = run(capsys, "compare", "--data", path)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "{tmp}/missing.txt", "--store", "{tmp}/s"], "there is no file or folder"),
        (["index", "{empty}", "--store", "{tmp}/s"], "holds no document"),
        (["ask", "Why?", "--store", "{empty}"], "there is no store in"),
        (["ask", "Why?", "--store", "{corrupt}"], "is corrupt"),
        (
            ["ask", "Why?", "--store", "{store}", "--model", "/no/such/model"],
            "there is no folder /no/such/model",
        ),
        (["ask", "Why?", "--store", "{store}", "--model", "nobody/nothing"], "cannot be loaded"),
        (["ask", "Why? " * 2000, "--store", "{store}", "--model", "{tiny}"], "but the context holds 1024"),
        (["ask", "Why?", "--store", "{store}", "--json", "{tmp}"], "cannot be written"),
        (["index", "{documents}", "--store", "{documents}"], "holds other files and no store"),
        (["compare", "--data", "{tmp}", "--baselines", "magic"], "baselines must be among"),
        (
            ["ask", "Why?", "--store", "{store}", "--json", "/no/such/folder/x.json"],
            "there is no folder /no/such/folder",
        ),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    capsys, tmp_path, store, documents, tiny_folder, arguments, message
):
    empty, corrupt = tmp_path / "empty", tmp_path / "corrupt"
    empty.mkdir()
    corrupt.mkdir()
    (corrupt / "manifest.json").write_text("{}")
    places = {"tmp": tmp_path, "empty": empty, "corrupt": corrupt, "store": store, "tiny": tiny_folder}
    places["documents"] = documents
    code, _, err = run(capsys, *(argument.format(**places) for argument in arguments))
    last = err.strip().splitlines()[-1]
    assert code == 2
    assert last.startswith("llma-rag: error: ")
    assert message in last
    assert "Traceback" not in err


def test_the_installed_command_prints_help_and_version():
    for arguments, expected in ((["--help"], "compare"), (["--version"], "0.")):
        done = subprocess.run(
            [sys.executable, "-c", "from llma_rag.cli import main; main()", *arguments],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "COLUMNS": "100"},
        )
        assert expected in done.stdout


def test_a_sample_that_does_not_fit_is_refused_before_anything_is_measured(capsys, tmp_path, tiny_folder):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"query": "x", "docs": ["word " * 3000]}) + "\n")
    code, _, err = run(capsys, "compare", "--data", data, "--model", tiny_folder)
    assert code == 2
    assert "the prompt of sample 0 has" in err


def test_answers_and_paths_are_printed_as_they_are(capsys):
    printing.console.print("a :key: [b] [/docs/x]", "/tmp/docs[v2]/s")
    assert capsys.readouterr().out == "a :key: [b] [/docs/x] /tmp/docs[v2]/s\n"
    assert printing.printable("a\x1b[2Jb\n\tc é") == "a\ufffd[2Jb\n\tc é"
