"""Chains of n-grams against the naive search, and how places vote."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llma_rag.decoding.drafting import DraftConfig, ReferenceDrafter
from llma_rag.decoding.matching import MOST_LENGTH, IndexCache, NgramIndex, matches
from llma_rag.decoding.naive import naive_matches

ids = st.lists(st.integers(0, 3), max_size=60)
some_ids = st.lists(st.integers(0, 3), min_size=1, max_size=60)


def drafter_after(output, references=(), prompt=(), **options):
    drafter = ReferenceDrafter(references, list(prompt), **options)
    drafter.extend(output)
    return drafter


@given(source=ids, output=some_ids)
def test_every_place_is_found_with_its_length_longest_first(source, output):
    found = matches([NgramIndex(source)], output, most=1000)
    assert {match.end: match.length for match in found} == naive_matches(output, source, MOST_LENGTH)
    assert len(found) == len({match.end for match in found})
    classes = [next(size for size in (4, 2, 1) if match.length >= size) for match in found]
    assert classes == sorted(classes, reverse=True)
    for size in (4, 2, 1):
        ends = [match.end for match, of in zip(found, classes, strict=True) if of == size]
        assert ends == sorted(ends, reverse=True)  # the most recent first


@given(sources=st.lists(ids, max_size=3), output=some_ids, most=st.integers(1, 9))
def test_of_too_many_places_the_longest_and_the_first_sources_stay(sources, output, most):
    indexes = [NgramIndex(source) for source in sources]
    assert matches(indexes, output, most) == matches(indexes, output, 1000)[:most]


@given(source=ids, more=ids, output=some_ids)
def test_an_index_that_has_grown_is_one_made_at_once(source, more, output):
    grown = NgramIndex(source)
    for token_id in more:
        grown.append(token_id)
    assert matches([grown], output, 99) == matches([NgramIndex([*source, *more])], output, 99)


@given(source=ids, output=some_ids)
def test_ids_alike_are_found_whatever_their_neighbours(source, output):
    alike = [0, 0, 2, 2]
    found = [match.end for match in NgramIndex(source, alike).matches_alike(output)]
    assert found == [e for e in range(len(source) - 1, 0, -1) if alike[source[e - 1]] == alike[output[-1]]]


@given(source=ids, begin=st.integers(0, 60), length=st.integers(1, 60), other=some_ids)
def test_what_an_index_holds_occurs_in_it(source, begin, length, other):
    text = "".join(map(str, source))
    for part in (source[begin : begin + length], other):
        held = NgramIndex(source).holds(part)
        assert not held or "".join(map(str, part)) in text


@given(source=ids, output=some_ids, least=st.integers(1, MOST_LENGTH), most=st.integers(1, 9))
def test_places_with_less_context_than_asked_for_do_not_count(source, output, least, most):
    wanted = {end for end, length in naive_matches(output, source, MOST_LENGTH).items() if length >= least}
    found = matches([NgramIndex(source)], output, most, least)
    assert {match.end for match in found} <= wanted
    assert len(found) == min(most, len(wanted))


def test_a_prompt_holds_the_documents_that_it_shows():
    document = list(range(50, 90))
    prompt = NgramIndex([1, 2, *document, 3, 4])
    assert prompt.holds(document)
    assert not prompt.holds([*document, 5])
    assert not prompt.holds([])


def test_a_reference_that_the_prompt_shows_is_searched_once():
    document = list(range(50, 90))
    drafter = ReferenceDrafter([document, [7, 8]], [1, *document, 2])
    assert [index.ids for index in drafter._indexes] == [[1, *document, 2], [7, 8]]


class Scores:
    """Given scores by position."""

    def __init__(self, by_position):
        self.by_position = by_position

    def scores(self, candidate_positions, position):
        return [self.by_position.get(place, 0.0) for place in candidate_positions]


def test_the_longer_match_wins():
    assert drafter_after([9, 1, 2], [[1, 2, 5, 5], [8, 2, 6, 6]]).propose(3) == [[5, 5]]


def test_of_equal_places_the_prompt_and_the_better_reference_win():
    assert drafter_after([1], [[1, 5], [1, 6]], [1, 7]).propose(1) == [[7]]
    assert drafter_after([1], [[1, 5], [1, 6]]).propose(1) == [[5]]


def test_places_that_agree_outvote_one():
    assert drafter_after([1], [[1, 5, 9], [1, 6, 7], [1, 6, 8]]).propose(2) == [[6, 7]]


def test_places_that_dissent_drop_out_of_the_vote():
    references = [[1, 6, 7, 0], [1, 6, 8, 4], [1, 5, 8, 4], [1, 5, 3, 4], [1, 6, 7, 0]]
    assert drafter_after([1], references).propose(3) == [[6, 7, 0]]


def test_the_place_most_alike_to_the_model_wins():
    prompt = [20, 1, 5, 21, 1, 6, 22]
    for alike_to, following in ((0, 5), (3, 6)):
        scorer = Scores({alike_to: 1.0})
        assert drafter_after([23, 1], [], prompt, scorer=scorer).propose(1) == [[following]]


def test_scores_that_are_no_numbers_count_as_nothing():
    prompt = [20, 1, 5, 21, 1, 6, 22]
    for nonsense in (float("nan"), float("inf"), -float("inf")):
        scorer = Scores({0: nonsense, 3: 0.5})
        assert drafter_after([23, 1], [], prompt, scorer=scorer).propose(1) == [[6]]


def test_further_drafts_are_those_of_the_dissenters():
    references = [[1, 5, 7], [1, 6, 8], [1, 5, 9], [1, 5, 7]]
    assert drafter_after([1], references).propose(2, 9) == [[5, 7], [6, 8], [5, 9]]
    assert drafter_after([1], references).propose(2, 2) == [[5, 7], [6, 8]]


def test_after_a_mismatch_copying_goes_on_behind_it():
    drafter = drafter_after([1], [[1, 2, 3, 4, 5, 6]])
    assert drafter.propose(3) == [[2, 3, 4]]
    drafter.extend([2, 99])  # 99 in place of 3
    assert drafter.propose(3) == [[4, 5, 6]]


def test_the_place_where_copying_goes_on_is_favoured():
    reference = [1, 2, 3, 4, 9, 9, 9, 3, 5]
    drafter = drafter_after([1], [reference])
    drafter.propose(1)
    drafter.extend([2, 3])
    assert drafter.propose(1) == [[4]]
    assert drafter_after([3], [reference]).propose(1) == [[5]]  # the most recent, where nothing was copied


def test_an_id_alike_serves_where_none_is_equal():
    alike = [0, 1, 2, 3, 1]
    assert drafter_after([4], [[1, 2, 3]], alike=alike).propose(2) == [[2, 3]]
    assert drafter_after([4], [[1, 2, 3]]).propose(2) == []
    assert drafter_after([4], [[4, 3], [1, 2, 3]], alike=alike).propose(2, 2) == [[3], [2, 3]]


def test_an_index_is_shared_by_requests_that_do_not_see_each_other():
    index = NgramIndex([1, 2, 3, 1, 2, 4, 5])
    first, second = drafter_after([3], [index]), drafter_after([4], [index])
    assert first.propose(2) == [[1, 2]]
    assert second.propose(2) == [[5]]


def test_match_length_and_copy_length_limit_the_draft():
    reference = [1, 2, 3, 4, 5, 6]
    needs_two = drafter_after([9, 2], [reference], config=DraftConfig(match_length=2))
    assert needs_two.propose(4) == []
    needs_two.extend([3])
    assert needs_two.propose(4) == [[4, 5, 6]]
    assert drafter_after([2], [reference], config=DraftConfig(copy_length=1)).propose(3) == [[3]]


@pytest.mark.parametrize("room", [0, -1])
def test_without_room_nothing_is_drafted(room):
    assert drafter_after([2], [[2, 3]]).propose(room) == []


def test_one_id_over_and_over_is_looked_at_in_part():
    index = NgramIndex([7] * 20_000)
    assert len(matches([index], [7] * 10, 64)) == 64
    assert len(list(index.matches([7], 1))) <= 256


def test_an_index_is_made_once_and_the_oldest_goes_first():
    made = []

    def ids_of(key):
        made.append(key)
        return [1, 2, 3, 4]

    cache = IndexCache(most_ids=8)
    for key in ("a", "b", "a", "c", "a", "b"):
        assert cache.get(key, lambda key=key: ids_of(key)).ids == [1, 2, 3, 4]
        assert cache.ids <= 8
    assert made == ["a", "b", "c", "b"]


def test_an_index_larger_than_the_cache_is_kept_until_the_next():
    cache = IndexCache(most_ids=2)
    long = cache.get("long", lambda: range(10))
    assert cache.get("long", lambda: []) is long
    cache.get("short", lambda: [1])
    assert cache.ids == 1
