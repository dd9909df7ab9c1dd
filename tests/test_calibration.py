"""Which width is taken, and that it stays."""

from __future__ import annotations

import pytest
import torch

from llma_rag.engine import Engine
from llma_rag.errors import ModelError
from llma_rag.models import ModelRunner, StepShape, Verdict, exact_runner
from llma_rag.models.calibration import Calibration, cached_calibration, calibrate
from tests.tiny import tiny_model, tiny_tokenizer


def ranked(step_s):
    by_shape = {StepShape(1, width): seconds for width, seconds in step_s.items()}
    return [shape.width for shape in Calibration(by_shape).ranked]


def test_the_width_with_most_expected_tokens_per_second_ranks_first():
    assert ranked({8: 0.040, 16: 0.041, 4: 0.039}) == [16, 8, 4]
    assert ranked({8: 0.040, 16: 0.060, 4: 0.039}) == [8, 4, 16]
    assert ranked({8: 0.100, 16: 0.200, 4: 0.040})[0] == 4


def test_of_widths_that_are_about_equal_the_widest_ranks_first():
    assert ranked({8: 0.0362, 16: 0.0489, 4: 0.0304}) == [8, 4, 16]
    assert ranked({8: 0.0362, 16: 0.0489, 4: 0.0280}) == [4, 8, 16]


def test_a_measurement_leaves_the_runner_as_it_was():
    runner = ModelRunner(tiny_model("llama"), 8)
    shapes = {StepShape(1, 8), StepShape(1, 16), StepShape(1, 4), StepShape(2, 8)}
    calibration = calibrate(runner, list(shapes))
    assert set(calibration.step_s) == shapes
    assert all(seconds > 0 for seconds in calibration.step_s.values())
    assert runner.width == 8
    assert not any(layer.keys.any() for layer in runner._memory.layers)


def test_a_short_context_leaves_wide_steps_out():
    shapes = [StepShape(1, width) for width in (8, 16, 4)]
    assert set(calibrate(ModelRunner(tiny_model("llama"), 8, 24), shapes).step_s) == {shapes[0], shapes[2]}


def test_what_was_measured_is_kept_and_damage_is_measured_again(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMA_RAG_CACHE", str(tmp_path))
    runner = ModelRunner(tiny_model("llama"), 8)
    shapes = [StepShape(1, 8), StepShape(2, 8)]
    first = cached_calibration(runner, shapes)
    assert cached_calibration(runner, shapes) == first
    (file,) = tmp_path.rglob("calibration/*.json")
    for damage in ("{", '{"8": 0}', '{"8": NaN}', "[]", '{"8": "x"}', '{"99": 1.0}', "{}"):
        file.write_text(damage)
        assert set(cached_calibration(runner, shapes).step_s) == set(shapes)


def test_the_best_width_that_is_exact_is_taken(monkeypatch):
    costs = Calibration({StepShape(1, 16): 0.01, StepShape(4, 8): 0.01, StepShape(1, 4): 0.01})
    monkeypatch.setattr("llma_rag.models.calibration.cached_calibration", lambda *_: costs)
    monkeypatch.setattr(
        "llma_rag.models.calibration.cached_probe",
        lambda runner: Verdict(runner.width, runner.width == 4, 10, 3, runner.candidates),
    )
    runner, verdict, calibration = exact_runner(tiny_model("llama"), None, None, torch.get_num_threads())
    assert (runner.width, runner.candidates, verdict.width, calibration) == (4, 1, 4, costs)
    assert runner._memory.candidates == 1


def test_drafts_side_by_side_are_taken_where_rows_are_cheap():
    seconds = {StepShape(1, 16): 0.0100, StepShape(4, 8): 0.0101, StepShape(4, 16): 0.0102}
    assert Calibration(seconds).ranked[0] == StepShape(4, 16)
    seconds = {StepShape(1, 16): 0.0100, StepShape(4, 8): 0.0130, StepShape(4, 16): 0.0180}
    assert Calibration(seconds).ranked[0] == StepShape(1, 16)


def test_where_many_drafts_do_not_fit_into_memory_fewer_are_taken(monkeypatch):
    runner = ModelRunner(tiny_model("llama"), 8)

    def refuse(context_length, candidates):
        raise ModelError("no room")

    monkeypatch.setattr(runner, "smaller", refuse)
    assert set(calibrate(runner, [StepShape(4, 8), StepShape(1, 8)]).step_s) == {StepShape(1, 8)}


def test_a_shape_that_does_not_fit_after_all_is_left_out(monkeypatch):
    costs = Calibration({StepShape(4, 8): 0.01, StepShape(1, 8): 0.01})
    monkeypatch.setattr("llma_rag.models.calibration.cached_calibration", lambda *_: costs)
    made = ModelRunner.__init__

    def refuse_four(self, *arguments, candidates=1, **options):
        if candidates == 4:
            raise ModelError("the KV memory does not fit")
        made(self, *arguments, candidates=candidates, **options)

    monkeypatch.setattr(ModelRunner, "__init__", refuse_four)
    runner, verdict, _ = exact_runner(tiny_model("llama"), None, None, torch.get_num_threads())
    assert (runner.candidates, runner.width, verdict.candidates) == (1, 8, 1)
    with pytest.raises(ModelError, match="does not fit"):
        exact_runner(tiny_model("llama"), None, None, torch.get_num_threads(), candidates=4)


@pytest.mark.parametrize(("asked", "taken"), [({"candidates": 3}, 3), ({"candidates": 2, "width": 8}, 2)])
def test_as_many_drafts_side_by_side_as_asked_for(asked, taken):
    tokenizer = tiny_tokenizer()
    engine = Engine(tiny_model("llama", vocab_size=len(tokenizer)), tokenizer, **asked)
    drafted = engine.generate("abc abd abe abc ab", max_tokens=40)
    assert (engine.runner.candidates, drafted.verdict.candidates) == (taken, taken)
    assert drafted.token_ids == engine.generate("abc abd abe abc ab", max_tokens=40, draft=False).token_ids


def test_an_engines_width_is_in_every_result_and_a_given_one_is_kept():
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    engine = Engine(model, tokenizer)
    assert engine.calibration.step_s
    assert engine.generate("x", max_tokens=2).verdict.width == engine.runner.width
    given = Engine(model, tokenizer, width=16)
    assert (given.calibration, given.runner.width) == (None, 16)
    with pytest.raises(ValueError, match="prefix_cache_mb must be 0 or more"):
        Engine(model, tokenizer, prefix_cache_mb=-1)
