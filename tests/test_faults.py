"""Deliberate faults: each must break the property that the other tests rest on.

A property that holds whatever is broken proves nothing. Every fault is injected into the scripted model's
decoding and into a tiny Llama's, and must change the output.
"""

from __future__ import annotations

import pytest
import torch

from llma_rag.decoding import greedy, greedy_decode
from llma_rag.decoding.naive import naive_greedy
from llma_rag.models import ModelRunner
from llma_rag.models.memory import SlotLayer
from tests.scripted import OracleDrafter, ScriptedModel
from tests.tiny import VOCAB, tiny_model

PROMPT = [3, 1, 4, 1, 5, 2, 6]
TOKENS = 60
SPOIL = [2, 0, 5, None, 1, 3] * 20  # where each draft goes wrong


def scripted():
    model = ScriptedModel(vocab_size=7, width=8)
    truth = naive_greedy(model.next_id, PROMPT, max_tokens=TOKENS)
    return model, truth, 7


def llama():
    model = tiny_model("llama")

    @torch.inference_mode()
    def predict_next(context):
        return int(model(torch.tensor([list(context)]), logits_to_keep=1).logits[0, -1].argmax())

    return ModelRunner(model, 8), naive_greedy(predict_next, PROMPT, max_tokens=TOKENS), VOCAB


def outputs(make, eos_of=lambda truth: (), spoil=SPOIL):
    """Return the drafted output and the true one, which are equal unless something is broken."""
    model, truth, vocab_size = make()
    eos_ids = eos_of(truth)
    expected = truth[: min((truth.index(eos) for eos in eos_ids), default=TOKENS) + 1]
    drafter = OracleDrafter(truth, spoil, vocab_size)
    steps = greedy_decode(model, PROMPT, drafter, max_tokens=TOKENS, eos_ids=eos_ids)
    return [token_id for step in steps for token_id in step.ids], expected


def inside_a_draft(truth):
    """Return an id that first occurs within the first draft, as the end-of-sequence id."""
    return {next(truth[place] for place in range(2, 7) if truth.index(truth[place]) == place)}


models = pytest.mark.parametrize("make", [scripted, llama])


@models
def test_without_a_fault_the_outputs_are_equal(make):
    drafted, expected = outputs(make)
    assert drafted == expected
    drafted, expected = outputs(make, inside_a_draft, spoil=[])
    assert drafted == expected


@models
@pytest.mark.parametrize("shift", [-1, 1])
def test_rewind_off_by_one_is_noticed(make, shift, monkeypatch):
    for owner in (ScriptedModel, ModelRunner):
        verify = owner.verify
        monkeypatch.setattr(owner, "verify", lambda self, at, rows, v=verify: v(self, at + shift, rows))
    drafted, expected = outputs(make)
    assert drafted != expected


@models
def test_one_id_too_many_is_noticed(make, monkeypatch):
    agreed_length = greedy.agreed_length
    monkeypatch.setattr(
        greedy, "agreed_length", lambda draft, predicted: min(agreed_length(draft, predicted) + 1, len(draft))
    )
    drafted, expected = outputs(make)
    assert drafted != expected


@models
def test_ignored_eos_is_noticed(make, monkeypatch):
    monkeypatch.setattr(greedy, "cut_after_eos", lambda ids, eos_ids: list(ids))
    drafted, expected = outputs(make, inside_a_draft, spoil=[])
    assert drafted != expected


@models
def test_stale_kv_row_is_noticed(make, monkeypatch):
    def written_all_but_the_second(self, position, ids):
        slots = list(self.slots)
        for row, token_id in enumerate(ids):
            if row != 1 or position + row >= len(slots):
                slots[position + row : position + row + 1] = [token_id]
        return slots

    update = SlotLayer.update

    def update_all_but_the_second_row(self, keys, values, *args, **kwargs):
        stale = self._window.start + 1
        kept = self.keys[:, :, stale].clone(), self.values[:, :, stale].clone()
        update(self, keys, values, *args, **kwargs)
        if keys.shape[-2] == 8:  # a verify step
            self.keys[:, :, stale], self.values[:, :, stale] = kept
        view = self._window.view
        return self.keys[:, :, :view], self.values[:, :, :view]

    monkeypatch.setattr(ScriptedModel, "written_by", written_all_but_the_second)
    monkeypatch.setattr(SlotLayer, "update", update_all_but_the_second_row)
    drafted, expected = outputs(make)
    assert drafted != expected
