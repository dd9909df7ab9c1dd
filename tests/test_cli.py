"""The commands as processes and in process, over a tiny model: output, JSON, and one-line errors."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from llma_rag.cli import app as cli
from llma_rag.cli import printing
from tests.test_documents import write_collection, write_pdf


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


def test_index_follows_what_changed(capsys, tmp_path, documents, store):
    (documents / "boat.txt").write_text("The boat leaves at eight.\n")
    (documents / "new.csv").write_text("pier,boats\nnorth,4\n")
    code, out, _ = run(capsys, "index", documents, "--store", store, "--json", tmp_path / "out.json")
    assert code == 0
    assert "1 new, 1 changed, 1 unchanged, 0 removed, 0 not read" in out
    assert json.loads((tmp_path / "out.json").read_text()) == {
        "new": 1,
        "changed": 1,
        "unchanged": 1,
        "removed": 0,
        "chunks": 2,
        "embedded_chunks": 2,
        "skipped": [],
        "total_documents": 3,
        "total_chunks": 3,
    }


def test_index_lists_what_it_cannot_read(capsys, tmp_path, store):
    folder = tmp_path / "all"
    kinds = write_collection(folder)
    write_pdf(folder / "secret.pdf", ["x"], password="secret")
    (folder / "broken.docx").write_bytes(b"PK broken")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "loop").symlink_to(folder)
    code, out, err = run(capsys, "index", folder, "--store", store, "--json", tmp_path / "out.json")
    assert code == 1
    assert f"{len(kinds)} new, 0 changed, 0 unchanged, 0 removed, 4 not read" in out
    flat = " ".join(out.split())
    for reason in (
        "secret.pdf: is encrypted; save it without its password",
        "broken.docx: is damaged or not a .docx file",
        "empty.txt: is empty",
        "loop: is a symbolic link loop",
    ):
        assert reason in flat
    assert "Traceback" not in err
    skipped = json.loads((tmp_path / "out.json").read_text())["skipped"]
    assert [one["broken"] for one in skipped] == [True, False, True, True]


def test_ask_names_file_and_page(capsys, tmp_path, store, tiny_folder):
    write_pdf(tmp_path / "rules.pdf", ["No dogs on the pier.", "Swimming is allowed from the beach only."])
    run(capsys, "index", tmp_path / "rules.pdf", "--store", store)
    arguments = ("--store", store, "--model", tiny_folder, "--max-tokens", 5, "--passages", 1)
    code, out, _ = run(capsys, "ask", "Where is swimming allowed?", *arguments)
    assert code == 0
    assert "rules.pdf, page 2, characters 0 to" in " ".join(out.split())
    code, _, err = run(capsys, "ask", "qwertz", *arguments, "--search", "words")
    assert code == 2
    assert "holds nothing with these words" in err


def test_store_tells_what_it_holds_and_lets_go(capsys, tmp_path, documents, store):
    code, out, _ = run(capsys, "store", "info", store, "--json", tmp_path / "out.json")
    assert code == 0
    assert "2 documents, 2 passages" in out
    assert "all-MiniLM-L6-v2, dimension 384" in out
    assert json.loads((tmp_path / "out.json").read_text())["index"] == "exact"
    code, out, _ = run(capsys, "store", "list", store)
    assert "museum.md" in out
    code, out, _ = run(capsys, "store", "remove", store, documents / "boat.txt")
    assert "1 documents with 1 passages removed; 1 passages are left" in " ".join(out.split())
    assert "boat.txt" not in run(capsys, "store", "list", store)[1]
    assert (documents / "boat.txt").exists()
    code, _, err = run(capsys, "store", "remove", store, documents / "boat.txt")
    assert (code, "holds no document" in err) == (2, True)
    run(capsys, "store", "remove", store, documents)
    assert "0 documents, 0 passages" in run(capsys, "store", "info", store)[1]


def test_index_watches_until_interrupted(tmp_path, documents):
    command = [sys.executable, "-m", "llma_rag.cli", "index", documents, "--store", tmp_path / "s", "--watch"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # where it was ignored
    ) as watching:
        try:
            lines = (line for line in watching.stdout if "new," in line)
            assert next(lines).startswith("2 new")
            time.sleep(1)
            (documents / "late.txt").write_text("Late news about the pier.\n")
            assert next(lines).startswith("1 new, 0 changed, 2 unchanged")
            watching.send_signal(signal.SIGINT)
            assert watching.wait(30) == 130
        finally:
            watching.kill()


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


def test_doctor_tells_what_a_machine_does_with_a_model(capsys, tmp_path, tiny_folder):
    found = tmp_path / "doctor.json"
    code, out, _ = run(capsys, "doctor", "--model", tiny_folder, "--dtype", "float32", "--json", found)
    assert code == 0
    for text in ("width", "exact (", "KV per 1,000 tokens", "step by width", "packed, 0 plain"):
        assert text in out
    data = json.loads(found.read_text())
    assert data["exact"]
    assert set(data["step_s"]) == {"4", "8", "16"}
    assert str(data["width"]) in data["step_s"]
    assert data["kv_bytes"] > data["kv_bytes_per_1000_tokens"] > 0
    code, out, _ = run(capsys, "doctor", "--model", tiny_folder, "--dtype", "float32", "--width", "4")
    assert "The width was given" in out
    assert "4: " in out


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
    (corrupt / "store.sqlite").write_bytes(b"no database at all" * 100)
    places = {"tmp": tmp_path, "empty": empty, "corrupt": corrupt, "store": store, "tiny": tiny_folder}
    places["documents"] = documents
    code, _, err = run(capsys, *(argument.format(**places) for argument in arguments))
    last = err.strip().splitlines()[-1]
    assert code == 2
    assert last.startswith("llma-rag: error: ")
    assert message in last
    assert "Traceback" not in err


def test_vllm_args_are_ready_to_paste(capsys, tmp_path):
    code, out, _ = run(capsys, "vllm-args", "--model", "my models/seven", "--drafted", 5)
    name, option, speculation = shlex.split(out)
    assert (code, name, option) == (0, "my models/seven", "--speculative-config")
    speculation = json.loads(speculation)
    assert (speculation["method"], speculation["num_speculative_tokens"]) == ("custom_class", 5)
    module, _, proposer = speculation["model"].rpartition(".")
    assert callable(getattr(importlib.import_module(module), proposer))
    for unreadable in ("smollm2-135m", "SmolLM2-135M", "model.gguf", ""):
        code, _, err = run(capsys, "vllm-args", "--model", unreadable)
        assert (code, "vLLM reads hub names and folders" in err) == (2, True)
    code, _, err = run(capsys, "vllm-args", "--model", tmp_path)
    assert (code, "it has no config.json" in err) == (2, True)


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
