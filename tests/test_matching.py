"""The suffix automaton against the naive search."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llma_rag.decoding.drafting import DraftConfig, ReferenceDrafter
from llma_rag.decoding.matching import IndexCache, OutputCursor, ReferenceIndex
from llma_rag.decoding.naive import naive_longest_match

ids = st.lists(st.integers(0, 3), max_size=60)


@given(source=ids, output=ids)
def test_cursor_finds_the_longest_and_most_recent_match_in_a_reference(source, output):
    cursor = ReferenceIndex(source).cursor()
    for count, token_id in enumerate(output, start=1):
        cursor.extend(token_id)
        assert (cursor.match.length, cursor.match.end) == naive_longest_match(output[:count], source)


@given(output=ids)
def test_output_cursor_finds_the_longest_and_most_recent_earlier_match(output):
    cursor = OutputCursor()
    for count, token_id in enumerate(output, start=1):
        cursor.extend(token_id)
        so_far = output[:count]
        assert (cursor.match.length, cursor.match.end) == naive_longest_match(so_far, so_far)


@given(references=st.lists(ids, max_size=4), prompt=ids, output=ids, room=st.integers(0, 8))
def test_drafter_copies_what_followed_the_longest_match(references, prompt, output, room):
    drafter = ReferenceDrafter(references, prompt)
    drafter.extend(output)
    sources = [output, prompt, *references]
    matches = [(*naive_longest_match(output, source), source) for source in sources]
    length, end, source = max(matches, key=lambda match: match[0])
    assert drafter.propose(room) == (source[end : end + room] if length else [])


def test_shared_index_serves_two_outputs_at_once():
    index = ReferenceIndex([1, 2, 3, 1, 2, 4, 5])
    first, second = index.cursor(), index.cursor()
    first.extend(3)
    second.extend(4)
    assert first.match.continuation(2) == [1, 2]
    assert second.match.continuation(2) == [5]


def test_match_length_and_copy_length_limit_the_draft():
    reference = [1, 2, 3, 4, 5, 6]
    needs_two = ReferenceDrafter([reference], [], DraftConfig(match_length=2))
    needs_two.extend([9, 2])
    assert needs_two.propose(4) == []
    needs_two.extend([3])
    assert needs_two.propose(4) == [4, 5, 6]
    copies_one = ReferenceDrafter([reference], [], DraftConfig(copy_length=1))
    copies_one.extend([2])
    assert copies_one.propose(4) == [3]


def test_references_win_by_rank_and_the_prompt_before_them():
    drafter = ReferenceDrafter([[1, 5], [1, 6]], [1, 7])
    drafter.extend([1])
    assert drafter.propose(3) == [7]
    drafter = ReferenceDrafter([[1, 5], [1, 6]], [])
    drafter.extend([1])
    assert drafter.propose(3) == [5]


def test_long_repetitive_reference_is_indexed_in_linear_size():
    index = ReferenceIndex([7] * 20_000)
    assert len(index._automaton.link) <= 40_000
    cursor = index.cursor()
    for _ in range(100):
        cursor.extend(7)
    assert cursor.match.length == 100


def test_an_index_is_made_once_and_the_oldest_goes_first():
    made = []

    def ids_of(key):
        made.append(key)
        return [1, 2, 3, 4]

    cache = IndexCache(most_ids=8)
    for key in ("a", "b", "a", "c", "a", "b"):
        assert cache.get(key, lambda key=key: ids_of(key)).ids == (1, 2, 3, 4)
        assert cache.ids <= 8
    assert made == ["a", "b", "c", "b"]


def test_an_index_larger_than_the_cache_is_kept_until_the_next():
    cache = IndexCache(most_ids=2)
    long = cache.get("long", lambda: range(10))
    assert cache.get("long", lambda: []) is long
    cache.get("short", lambda: [1])
    assert cache.ids == 1


@given(source=ids, outputs=st.lists(ids, max_size=3))
def test_requests_that_share_an_index_do_not_see_each_other(source, outputs):
    shared = ReferenceIndex(source)
    cursors = [shared.cursor() for _ in outputs]
    for place in range(60):
        for cursor, output in zip(cursors, outputs, strict=True):
            if place < len(output):
                cursor.extend(output[place])
    for cursor, output in zip(cursors, outputs, strict=True):
        assert (cursor.match.length, cursor.match.end) == naive_longest_match(output, source)
