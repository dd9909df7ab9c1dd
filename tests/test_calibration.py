"""Which width is taken, and that it stays."""

from __future__ import annotations

import pytest
import torch

from llma_rag.engine import Engine
from llma_rag.models import ModelRunner, Verdict, exact_runner
from llma_rag.models.calibration import Calibration, cached_calibration, calibrate
from tests.tiny import tiny_model, tiny_tokenizer


def test_the_width_with_most_expected_tokens_per_second_ranks_first():
    assert Calibration({8: 0.040, 16: 0.041, 4: 0.039}).ranked == [16, 8, 4]
    assert Calibration({8: 0.040, 16: 0.060, 4: 0.039}).ranked == [8, 4, 16]
    assert Calibration({8: 0.100, 16: 0.200, 4: 0.040}).ranked[0] == 4


def test_of_widths_that_are_about_equal_the_widest_ranks_first():
    assert Calibration({8: 0.0362, 16: 0.0489, 4: 0.0304}).ranked == [8, 4, 16]
    assert Calibration({8: 0.0362, 16: 0.0489, 4: 0.0280}).ranked == [4, 8, 16]


def test_a_measurement_leaves_the_runner_as_it_was():
    runner = ModelRunner(tiny_model("llama"), 8)
    calibration = calibrate(runner, (8, 16, 4))
    assert set(calibration.step_s) == {4, 8, 16}
    assert all(seconds > 0 for seconds in calibration.step_s.values())
    assert runner.width == 8
    assert not any(layer.keys.any() for layer in runner._memory.layers)


def test_a_short_context_leaves_wide_steps_out():
    assert set(calibrate(ModelRunner(tiny_model("llama"), 8, 24), (8, 16, 4)).step_s) == {8, 4}


def test_what_was_measured_is_kept_and_damage_is_measured_again(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMA_RAG_CACHE", str(tmp_path))
    runner = ModelRunner(tiny_model("llama"), 8)
    first = cached_calibration(runner, (8, 16))
    assert cached_calibration(runner, (8, 16)) == first
    (file,) = tmp_path.rglob("calibration/*.json")
    for damage in ("{", "[]", '{"8": "x"}', '{"99": 1.0}', "{}"):
        file.write_text(damage)
        assert set(cached_calibration(runner, (8, 16)).step_s) == {8, 16}


def test_the_best_width_that_is_exact_is_taken(monkeypatch):
    costs = Calibration({16: 0.01, 8: 0.01, 4: 0.01})
    monkeypatch.setattr("llma_rag.models.calibration.cached_calibration", lambda *_: costs)
    monkeypatch.setattr(
        "llma_rag.models.calibration.cached_probe",
        lambda runner: Verdict(runner.width, runner.width != 16, 10, 3),
    )
    runner, verdict, calibration = exact_runner(tiny_model("llama"), None, None, torch.get_num_threads())
    assert (runner.width, verdict.width, calibration) == (8, 8, costs)


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
