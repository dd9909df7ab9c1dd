"""Copied spans against their definition, searched by brute force."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llma_rag.provenance import GrowingSpans, Reference, as_references, copied_spans, coverage

texts = st.text("ab ", max_size=30)


def brute_force(output, references, minimum):
    """All ranges of at least `minimum` that occur in a reference and lie in no longer such range."""
    occurring = {
        (start, end)
        for start in range(len(output))
        for end in range(start + minimum, len(output) + 1)
        if any(output[start:end] in reference for reference in references)
    }
    maximal = []
    for start, end in sorted(occurring):
        if not any(a <= start and end <= b and (a, b) != (start, end) for a, b in occurring):
            rank = next(r for r, reference in enumerate(references) if output[start:end] in reference)
            maximal.append((start, end, rank, references[rank].index(output[start:end])))
    return maximal


def test_a_reference_for_drafts_only_hides_no_source():
    answer, document = "The museum opens at nine in the morning.", "opens at nine in the"
    earlier = Reference(answer, draft_only=True)
    (span,) = copied_spans(answer, as_references([earlier, document]))
    assert (span.start, span.end, span.reference_index) == (11, 31, 1)


@given(output=texts, references=st.lists(texts, max_size=4), minimum=st.integers(1, 5))
def test_spans_are_the_maximal_common_ranges(output, references, minimum):
    spans = copied_spans(output, as_references(references), minimum)
    found = [(span.start, span.end, span.reference_index, span.reference_start) for span in spans]
    assert found == brute_force(output, references, minimum)
    for span in spans:
        assert (
            output[span.start : span.end]
            == references[span.reference_index][span.reference_start : span.reference_end]
        )


@given(
    pieces=st.lists(st.text("ab ", max_size=6), max_size=12),
    references=st.lists(texts, max_size=4),
    minimum=st.integers(1, 5),
)
def test_spans_of_a_growing_output_are_those_of_all_of_it(pieces, references, minimum):
    references = as_references(references)
    growing, output, known = GrowingSpans(references, minimum), "", {}
    for piece in pieces:
        output += piece
        changed = growing.extend(piece)
        assert all(known.get(span.start) != span for span in changed)
        known.update({span.start: span for span in changed})
        assert sorted(known.values(), key=lambda span: span.start) == copied_spans(
            output, references, minimum
        )


@given(
    pieces=st.lists(st.tuples(st.text(max_size=10), st.integers(0, 40), st.integers(0, 60)), max_size=5),
    source=st.text(min_size=60, max_size=100),
)
def test_spans_of_copied_passages_are_equal_to_them_and_long_enough(pieces, source):
    output = "".join(own + source[start : start + length] for own, start, length in pieces)
    for span in copied_spans(output, [Reference(source)]):
        assert span.end - span.start >= 20
        assert output[span.start : span.end] == source[span.reference_start : span.reference_end]


@given(output=texts, references=st.lists(texts, max_size=3))
def test_coverage_counts_each_covered_character_once(output, references):
    spans = copied_spans(output, as_references(references), 3)
    covered = {place for span in spans for place in range(span.start, span.end)}
    assert coverage(spans, len(output)) == (len(covered) / len(output) if output else 0.0)


def test_ties_go_to_the_highest_ranked_reference_and_keep_its_metadata():
    sentence = "The boiler holds two litres of water."
    references = [
        Reference("Nothing here.", {"n": 0}),
        Reference(f"A. {sentence}", {"n": 1}),
        Reference(sentence, {"n": 2}),
    ]
    (span,) = copied_spans(f"I think: {sentence}", references)
    assert span.metadata == {"n": 1}
    assert (span.reference_start, span.reference_end) == (2, 3 + len(sentence))


def test_nineteen_characters_are_no_copy():
    assert copied_spans("x" * 19, [Reference("x" * 50)]) == []
    assert len(copied_spans("x" * 20, [Reference("x" * 50)])) == 1


def test_anything_with_text_and_metadata_is_a_reference():
    @dataclass
    class Passage:
        text: str
        metadata: dict[str, str]

    assert as_references(["a", Passage("b", {"page": "2"})]) == [
        Reference("a"),
        Reference("b", {"page": "2"}),
    ]


@pytest.mark.parametrize("bad", ["a single string", [3], [None]])
def test_other_references_are_an_error(bad):
    with pytest.raises(TypeError, match="reference"):
        as_references(bad)
