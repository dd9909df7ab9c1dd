"""The states kept of a layer are the model's own, however a position was computed."""

from __future__ import annotations

import pytest
import torch

from llma_rag.models import ModelRunner
from llma_rag.models.states import outputs_of, state_layer
from tests.test_models import prompt_of
from tests.tiny import ARCHITECTURES, tiny_model


@torch.inference_mode()
def likeness(model, ids, mean_over, candidates, position):
    """Return what the scores must be, from one pass over everything."""
    with outputs_of(state_layer(model)) as outputs:
        model(torch.tensor([ids]))
    states = outputs[0][0].float()
    states = torch.nn.functional.normalize(states - states[:mean_over].mean(0), dim=-1)
    return (states[candidates] @ states[position]).tolist()


@pytest.mark.parametrize("candidates", [1, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_cosines_of_the_models_own_states(architecture, candidates):
    model = tiny_model(architecture)
    runner = ModelRunner(model, 8, candidates=candidates)
    prompt, more = prompt_of(150), prompt_of(10, seed=2)
    runner.prefill(prompt)
    runner.verify(150, [more[:5]])
    runner.keep(0)
    runner.verify(155, [[more[5], 9, 9], more[5:]][:candidates])
    if candidates == 1:
        runner.verify(155, [more[5:]])
    runner.keep(candidates - 1)
    places = [0, 3, 149, 151, 157]
    expected = likeness(model, [*prompt, *more], 150, places, 159)
    assert runner.states.scores(places, 159) == pytest.approx(expected, abs=2e-3)
    assert len(model._forward_hooks) == 0
    assert all(len(module._forward_hooks) == 0 for module in model.modules())


def test_states_come_back_with_the_blocks_of_earlier_prompts():
    runner = ModelRunner(tiny_model("llama"), 8, prefix_cache_bytes=2**24)
    prompt = prompt_of(300)
    runner.prefill(prompt)
    expected = runner.states.scores(list(range(299)), 299)
    runner.prefill(prompt_of(300, seed=3))
    assert runner.states.scores(list(range(299)), 299) != expected
    known = runner.recall(prompt)
    assert known == 256
    runner.prefill(prompt, known=known)
    assert runner.states.scores(list(range(299)), 299) == expected


def test_a_model_without_a_plain_list_of_layers_is_drafted_without_states(monkeypatch):
    monkeypatch.setattr("llma_rag.models.runner.state_layer", lambda model: None)
    runner = ModelRunner(tiny_model("llama"), 8)
    assert runner.states is None
    following = runner.prefill(prompt_of(20))
    assert runner.verify(20, [[following]])


def test_the_layer_is_at_two_thirds_of_the_depth():
    model = tiny_model("llama", num_hidden_layers=7)
    assert state_layer(model) is model.model.layers[4]
