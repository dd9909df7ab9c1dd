"""The laboratory: forced answers, other people's policies against their definitions, the table."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llma_rag.bench.policies import LlmaReleased, LongestMatch, PromptLookup
from llma_rag.bench.replay import Forced, policies, read_forced, replay
from llma_rag.errors import DataError
from tests.test_cli import run

few = st.lists(st.integers(0, 3), max_size=12)


def occurrences(wanted, ids, before):
    """Return the ends of all occurrences of ids that end at `before` or earlier."""
    size = len(wanted)
    return [end for end in range(size, before + 1) if ids[end - size : end] == wanted]


def fed(kind, references, prompt, output):
    drafter = kind(references, prompt)
    for token_id in output:
        drafter.propose(7)
        drafter.extend([token_id])
    return next(iter(drafter.propose(40)), [])


@given(references=st.lists(few, max_size=3), output=few)
def test_llmas_released_policy_is_as_it_was_defined(references, output):
    expected = []
    for length in range(min(5, len(output)), 0, -1):
        ends = [
            (rank, end)
            for rank, ids in enumerate(references)
            for end in occurrences(output[-length:], ids, len(ids) - 1)
        ]
        if ends:
            rank, end = ends[0]
            expected = references[rank][end : end + 19]
            break
    assert fed(LlmaReleased, references, [], output) == expected


@given(references=st.lists(few, max_size=2), prompt=few, output=few)
def test_prompt_lookup_is_as_it_was_defined(references, prompt, output):
    known = [token_id for ids in (*references, prompt, output) for token_id in ids]
    expected = []
    for length in (2, 1):
        ends = occurrences(known[-length:], known, len(known) - 1) if len(known) > length else []
        if ends:
            expected = known[ends[0] : ends[0] + 10]
            break
    assert fed(PromptLookup, references, prompt, output) == expected


@given(references=st.lists(few, max_size=3), prompt=few, output=few)
def test_the_longest_match_is_the_longest_and_earliest(references, prompt, output):
    sources = [*references, prompt, output]
    expected = []
    for length in range(len(output), 0, -1):
        found = [ids[end:] for ids in sources for end in occurrences(output[-length:], ids, len(ids) - 1)]
        if found:
            expected = found[0]
            break
    assert fed(LongestMatch, references, prompt, output) == expected[:40]


@given(st.lists(few, max_size=2), few, st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_every_policy_produces_the_whole_answer(references, prompt, answer):
    tallies = replay([Forced("x", references, prompt, answer)], widths=(4, 8))
    assert tallies.keys() == policies().keys()
    for by_width in tallies.values():
        for width, tally in by_width.items():
            assert tally.tokens == len(answer)
            assert 0 < tally.passes <= len(answer)
            assert tally.drafted <= (tally.passes - 1) * (width - 1)


def test_an_answer_that_stands_in_a_reference_takes_few_passes():
    answer = list(range(100, 164))
    tally = replay([Forced("x", [[1, *answer, 2]], [], answer)], widths=(8,))["llma_rag"][8]
    assert tally.passes == 1 + -(-63 // 8)
    assert tally.to_json()["tokens_per_pass"] == 64 / tally.passes


def test_both_kinds_of_files_are_read(tmp_path):
    lines = tmp_path / "lines.jsonl"
    rows = [
        {"query": "q", "docs": ["ab"], "result": {"text": "1####abc"}},
        {"id": 7, "docs": ["x"], "result": {"text": "y"}},
    ]
    lines.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    encode = lambda text: [ord(one) for one in text]  # noqa: E731
    assert read_forced(lines, encode) == [
        Forced("0", [[97, 98]], [], [97, 98, 99]),
        Forced("7", [[120]], [], [121]),
    ]
    saved = tmp_path / "saved.json"
    sample = {"id": "3", "prompt_token_ids": [1, 2], "modes": {"references": {"token_ids": [3]}}}
    saved.write_text(json.dumps({"samples": [sample]}))
    assert read_forced(saved, encode) == [Forced("3", [[1, 2]], [], [3])]
    for content, message in (
        ('{"query": 1}', r"line 1 of .* with `docs` and `result.text`"),
        (f"{json.dumps(rows[0])}\nno json", "line 2 of"),
        ("[]", "line 1 of"),
        ('{"docs": "text", "result": {"text": "t"}}', "a list of texts `docs`"),
        ('{"samples": [{}]}', "no complete output of `compare --json`"),
    ):
        lines.write_text(content)
        with pytest.raises(DataError, match=message):
            read_forced(lines, encode)
    with pytest.raises(DataError, match="cannot be read"):
        read_forced(tmp_path / "nothing", encode)


def test_the_command_prints_a_table(capsys, tmp_path, tiny_folder):
    data = tmp_path / "data.jsonl"
    row = {"docs": ["The museum opens at nine."], "result": {"text": "The museum opens at nine, they say."}}
    data.write_text(json.dumps(row))
    out_file = tmp_path / "out.json"
    code, out, _ = run(capsys, "replay", "--data", data, "--tokenizer", tiny_folder, "--json", out_file)
    assert code == 0
    assert "llma_released" in out
    code, _, err = run(capsys, "replay", "--data", data, "--tokenizer", tiny_folder, "--skip", 3)
    assert (code, err) == (2, f"llma-rag: error: {data} holds 1 answers, none after the first 3\n")
    figures = json.loads(out_file.read_text())["policies"]
    assert figures.keys() == policies().keys()
    assert figures["llma_rag"].keys() == {"8", "16", "32"}
    assert figures["llma_rag"]["8"]["tokens_per_pass"] > 1
    assert figures["llma_rag"]["8"].keys() == {"tokens_per_pass", "drafted_per_pass", "us_per_proposal"}
