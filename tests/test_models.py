"""The two shapes: bit-equal logits with and without drafts, for every architecture, in fp32 and bf16."""

from __future__ import annotations

import pytest
import torch
import transformers

from llma_rag.decoding import NoDrafter, ReferenceDrafter, greedy_decode
from llma_rag.decoding.naive import naive_greedy
from llma_rag.errors import ContextLengthError, ModelError, UnsupportedModelError
from llma_rag.models import ModelRunner, cached_probe, require_agreement
from llma_rag.models.linears import PackedLinear, RowRuns, pack_for_cpu
from llma_rag.models.memory import PREFILL_BLOCK, view_at
from llma_rag.models.probe import probe
from tests.scripted import OracleDrafter, ScriptedDrafter
from tests.tiny import ARCHITECTURES, PROMISED, VOCAB, tiny_model

DTYPES = [torch.float32, torch.bfloat16]
STEPS = 210


class RecordingRunner(ModelRunner):
    """Keeps the logits that every output id was chosen from."""

    step = None

    def start(self):
        self.rows = {}  # by the position whose successor they predict
        return self

    def verify(self, position, candidates):
        self.step = position, candidates, self.step_logits(position, candidates)
        predicted = self.step[2].argmax(dim=-1).tolist()
        return [rows[: len(ids)] for rows, ids in zip(predicted, candidates, strict=False)]

    def keep(self, candidate):
        position, candidates, logits = self.step or (0, [[]] * self.candidates, None)
        self.step = None
        for row in range(len(candidates[candidate])):
            # a rejected id's row is overwritten by the true one
            self.rows[position + row] = logits[candidate, row]
        super().keep(candidate)


def decode(runner, prompt, drafter, max_tokens=STEPS):
    return [i for step in greedy_decode(runner, prompt, drafter, max_tokens=max_tokens) for i in step.ids]


def prompt_of(length, seed=1):
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def drafters(truth, prompt, runner):
    """A perfect one, one that is often wrong, and the real one."""
    return {
        "perfect": OracleDrafter(truth, [], VOCAB),
        "spoilt": OracleDrafter(truth, [n % 8 for n in range(500)], VOCAB),
        "references": ReferenceDrafter([truth[60:160], prompt_of(50, 9)], prompt),
        "states": ReferenceDrafter([truth[60:160]], prompt, scorer=runner.states),
    }


@pytest.mark.parametrize(
    ("architecture", "dtype", "candidates"),
    [
        *((name, torch.float32, 1) for name in ARCHITECTURES),
        *((name, torch.bfloat16, 1) for name in PROMISED),
        *((name, torch.float32, 3) for name in PROMISED),
        ("llama", torch.bfloat16, 3),
    ],
    ids=str,
)
def test_drafted_logits_are_bit_equal_to_plain_ones(architecture, dtype, candidates):
    model = tiny_model(architecture, dtype)
    pack_for_cpu(model)
    runner = RecordingRunner(model, width=8, candidates=candidates)
    require_agreement(runner)
    prompt = prompt_of(view_at(0) - 100)  # decoding crosses from the first view into the second
    truth = decode(runner.start(), prompt, NoDrafter())
    plain = runner.rows
    assert len(plain) == STEPS - 1
    for name, drafter in drafters(truth, prompt, runner).items():
        assert decode(runner.start(), prompt, drafter) == truth, name
        unequal = [place for place, row in plain.items() if not torch.equal(row, runner.rows[place])]
        assert unequal == [], name


@pytest.mark.parametrize(
    ("architecture", "dtype", "candidates"),
    [
        *((name, dtype, 1) for name in PROMISED for dtype in DTYPES),
        ("llama", torch.bfloat16, 2),
        ("qwen3_moe", torch.float32, 2),
    ],
    ids=str,
)
def test_steps_over_fixed_tensors_are_bit_equal_to_steps_over_new_ones(architecture, dtype, candidates):
    model = tiny_model(architecture, dtype)
    pack_for_cpu(model)
    recorded = []

    def record(run):
        recorded.append(run)
        return run  # a CUDA graph would compute the same from the same tensors

    static = RecordingRunner(model, width=8, record=record, candidates=candidates)
    prompt = prompt_of(view_at(0) - 30)
    truth = decode(
        (plain := RecordingRunner(model, width=8, candidates=candidates)).start(), prompt, NoDrafter(), 80
    )
    for drafter in drafters(truth, prompt[:90], static).values():
        assert decode(static.start(), prompt, drafter, 80) == truth
        assert all(torch.equal(row, static.rows[place]) for place, row in plain.rows.items())
    assert len(recorded) == 2  # one for each view that was crossed
    assert probe(static).exact


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_drafts_that_are_never_right_change_no_logit(dtype):
    runner = RecordingRunner(tiny_model("llama", dtype), width=8)
    prompt = prompt_of(100)
    truth = decode(runner.start(), prompt, NoDrafter())
    plain = runner.rows
    wrong = [[(token_id + 1) % VOCAB for token_id in truth[n : n + 7]] for n in range(1, len(truth))]
    nonsense = [[VOCAB + 5, -1], [3, -7, 2], [], [10**9]] * 60
    for drafts in (wrong, nonsense):
        assert decode(runner.start(), prompt, ScriptedDrafter(drafts)) == truth
        assert all(torch.equal(row, runner.rows[place]) for place, row in plain.items())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2"])
@pytest.mark.parametrize(("candidates", "width"), [(1, 4), (1, 8), (1, 16), (4, 8)])
def test_probe_passes_packed_models_and_leaves_the_memory_empty(architecture, dtype, candidates, width):
    model = tiny_model(architecture, dtype)
    pack_for_cpu(model)
    runner = ModelRunner(model, width, candidates=candidates)
    verdict = probe(runner)
    assert verdict.exact
    assert verdict.rows > 4 * width
    assert all(not layer.keys.any() and not layer.values.any() for layer in runner._memory.layers)


class RowDependent(torch.nn.Module):
    """A linear layer whose last row is computed in another order, as some kernels do at odd widths."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, rows):
        whole = self.linear(rows)
        half = rows.shape[-1] // 2
        weight = self.linear.weight
        last = rows[:, -1:, :half] @ weight[:, :half].T + rows[:, -1:, half:] @ weight[:, half:].T
        return torch.cat([whole[:, :-1], last], dim=1)


def test_probe_catches_a_width_whose_last_row_is_computed_differently():
    model = tiny_model("llama")
    model.model.layers[1].mlp.down_proj = RowDependent(model.model.layers[1].mlp.down_proj)
    verdict = probe(ModelRunner(model, 8))
    assert not verdict.exact
    assert 0 < verdict.mismatched < verdict.rows


@pytest.mark.parametrize(
    "widths",
    [
        pytest.param((2, 8, 9, 16, 32), id="some"),
        pytest.param(range(2, 33), id="all", marks=pytest.mark.soak),
    ],
)
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_width_that_the_probe_passes_is_exact(dtype, packed, widths):
    model = tiny_model("llama", dtype)
    if packed:
        pack_for_cpu(model)
    prompt = prompt_of(view_at(0) - 20)  # decoding crosses into the second view
    exact = []
    for width in widths:
        runner = RecordingRunner(model, width)
        if not probe(runner).exact:
            continue
        exact.append(width)
        truth = decode(runner.start(), prompt, NoDrafter(), 50)
        plain = runner.rows
        for drafter in drafters(truth, prompt[:90], runner).values():
            assert decode(runner.start(), prompt, drafter, 50) == truth, width
            assert all(torch.equal(row, runner.rows[place]) for place, row in plain.items()), width
    assert {8, 16, 32} <= set(exact)


def test_probe_catches_a_width_whose_rows_the_stock_linears_compute_differently():
    model = tiny_model(
        "llama", hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3
    )
    verdicts = {width: probe(ModelRunner(model, width)) for width in (8, 9)}
    assert verdicts[8].exact
    if not _depends_on_the_row(torch.nn.Linear(576, 1536), 9):
        pytest.skip("this machine's kernels compute all of 9 rows alike")
    assert not verdicts[9].exact


def test_steps_that_cannot_be_recorded_run_as_they_are():
    def record(run):
        raise RuntimeError("not permitted when stream is capturing")

    model = tiny_model("llama")
    runner = ModelRunner(model, 8, record=record)
    assert runner.recording == "failed: not permitted when stream is capturing"
    assert runner.prefill([1, 2, 3]) == ModelRunner(model, 8).prefill([1, 2, 3])
    stale = []

    def stuck(run):
        stale.append(run())
        return lambda: stale[-1]

    assert ModelRunner(model, 8, record=stuck).recording == "failed: a recorded step differs"


@torch.inference_mode()
def _depends_on_the_row(linear, rows):
    row = torch.randn(1, linear.in_features, generator=torch.Generator().manual_seed(0))
    return len(linear(row.repeat(rows, 1)).unique(dim=0)) > 1


def test_verdict_is_read_from_the_cache(monkeypatch):
    model = tiny_model("llama", num_hidden_layers=1)
    runner = ModelRunner(model, 8)
    first = cached_probe(runner)
    monkeypatch.setattr("llma_rag.models.probe.probe", lambda _: pytest.fail("probed again"))
    assert cached_probe(runner) == first


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3"])
def test_greedy_ids_are_those_of_the_models_own_forward(architecture):
    model = tiny_model(architecture)
    runner = ModelRunner(model, 8)
    prompt = prompt_of(150)

    @torch.inference_mode()
    def predict_next(context):
        return int(model(torch.tensor([list(context)]), logits_to_keep=1).logits[0, -1].argmax())

    expected = naive_greedy(predict_next, prompt, max_tokens=40)
    assert decode(runner, prompt, ReferenceDrafter([expected], prompt), 40) == expected


def test_padding_of_a_step_does_not_matter():
    runner = ModelRunner(tiny_model("llama"), 8)
    runner.prefill(prompt_of(70))
    rows = [runner.verify_logits(70, [5, 6, *more])[:2] for more in ([], [9] * 6, [1, 2, 3, 4, 5, 6])]
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])


def test_rejected_draft_leaves_memory_as_if_never_seen():
    runner = ModelRunner(tiny_model("llama"), 8)
    runner.prefill(prompt_of(70))
    plain = runner.verify_logits(70, [5])[0], runner.verify_logits(71, [6])[0]
    runner.prefill(prompt_of(70))
    runner.verify_logits(70, [5, 250, 251, 252, 253, 254, 255])
    assert torch.equal(runner.verify_logits(71, [6])[0], plain[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_logits_of_padding_rows_never_reach_real_rows(dtype):
    runner = ModelRunner(tiny_model("mistral", dtype, sliding_window=4, max_position_embeddings=512), 8)
    prompt = prompt_of(view_at(0) - 6)  # padding rows stand beyond the view, where their window is empty
    truth = decode(runner, prompt, NoDrafter(), 40)
    assert decode(runner, prompt, OracleDrafter(truth, [1, 2, 3] * 20, VOCAB), 40) == truth
    assert all(
        layer.keys.isfinite().all() and layer.values.isfinite().all() for layer in runner._memory.layers
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_of_several_drafts_that_overflows_spoils_no_other(dtype):
    runner = ModelRunner(tiny_model("llama", dtype), 8, candidates=2)
    bad = 250
    with torch.inference_mode():
        runner.model.model.embed_tokens.weight[bad] = float("nan")
    prompt = [token_id if token_id != bad else 3 for token_id in prompt_of(70)]
    following = runner.prefill(prompt)
    (plain,) = runner.verify(70, [[following]])
    runner.keep(0)
    after = runner.verify(71, [plain])
    for drafts in ([[], [bad]], [[bad], plain], [[bad, bad], [bad]]):
        assert runner.verify(70, [[following, *draft] for draft in drafts]) in ([plain] * 2, [plain])
        runner.keep(len(drafts) - 1)
        assert runner.verify(71, [plain]) == after


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_draft_that_overflows_is_refused_only_where_it_is_accepted(dtype):
    runner = ModelRunner(tiny_model("llama", dtype), 8)
    bad = 250
    with torch.inference_mode():
        runner.model.model.embed_tokens.weight[bad] = float("nan")
    prompt = prompt_of(70)
    prompt = [token_id if token_id != bad else 3 for token_id in prompt]
    following = runner.prefill(prompt)
    (plain,) = runner.verify(70, [[following]])
    after = runner.verify(71, [plain])
    assert runner.verify(70, [[following, bad, bad]]) == [plain]  # a wrong draft, wiped out
    assert runner.verify(70, [[following, *plain, bad]]) == [plain]
    assert runner.verify(71, [plain]) == after
    assert runner.prefill(prompt) == following
    with pytest.raises(ModelError, match="overflow"):
        runner.verify(70, [[bad]])


def test_a_block_that_overflows_is_remembered_by_nobody():
    runner = ModelRunner(tiny_model("llama"), 8, prefix_cache_bytes=2**24)
    bad = 250
    with torch.inference_mode():
        runner.model.model.embed_tokens.weight[bad] = float("nan")
    poisoned = [bad, *[5] * 299]
    with pytest.raises(ModelError, match="overflow"):
        runner.prefill(poisoned)
    assert runner.recall(poisoned) == 0
    assert runner.prefixes.bytes == 0
    assert runner.prefill([5] * 20) is not None


def test_decoding_reaches_the_last_position_of_the_context():
    runner = ModelRunner(tiny_model("gpt2", n_positions=300), 8)
    prompt = prompt_of(280)
    truth = decode(runner, prompt, NoDrafter(), 20)
    assert len(truth) == 20
    assert decode(runner, prompt, OracleDrafter(truth, [], VOCAB), 20) == truth


def test_a_prompt_beyond_the_context_is_an_error_with_both_numbers():
    runner = ModelRunner(tiny_model("llama"), 8, max_context=200)
    with pytest.raises(ContextLengthError, match=r"the prompt has 200 tokens, but the context holds 200"):
        runner.prefill(prompt_of(200))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 1}, "width must be from 2 to 64, got 1"),
        ({"width": 65}, "width must be from 2 to 64, got 65"),
        (
            {"width": 8, "max_context": 5000},
            r"max_context must be from twice the width \(16\) to 1024, got 5000",
        ),
        ({"width": 8, "max_context": 9}, "got 9"),
    ],
)
def test_bad_shapes_are_errors(settings, message):
    with pytest.raises(ModelError, match=message):
        ModelRunner(tiny_model("llama"), **settings)


def test_kv_memory_that_does_not_fit_is_refused_before_it_is_allocated():
    model = tiny_model("llama", max_position_embeddings=2**40)
    with pytest.raises(ModelError, match=r"need \d+ MiB, but \d+ MiB are free"):
        ModelRunner(model, 8, max_context=2**36)


def test_kv_bytes_are_those_allocated():
    runner = ModelRunner(tiny_model("qwen3"), 8, candidates=2)
    tensors = [tensor for layer in runner._memory.layers for tensor in (layer.keys, layer.values)]
    assert runner.kv_bytes == sum(tensor.nbytes for tensor in [*tensors, runner._memory.states])


def test_prefill_blocks_divide_every_view():
    assert all(view_at(position) % PREFILL_BLOCK == 0 for position in range(0, 20_000, 7))
    assert all(view_at(position) > position for position in range(20_000))


REFUSED = {
    "MambaConfig": "recurrent state",
    "RwkvConfig": "",
    "RecurrentGemmaConfig": "",
    "Lfm2Config": "conv",
    "JambaConfig": "",
    "BertConfig": "encoder",
}


@pytest.mark.parametrize("class_name", REFUSED)
def test_models_that_would_decode_wrongly_are_refused(class_name):
    small = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    small |= {"intermediate_size": 64, "num_key_value_heads": 2, "pad_token_id": 0}
    if class_name == "RwkvConfig":
        small = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32}
    if class_name == "RecurrentGemmaConfig":
        small |= {"num_hidden_layers": 3, "attention_window_size": 16, "lru_width": 32}
    if class_name == "Lfm2Config":
        small |= {"layer_types": ["conv", "full_attention"]}
    config = getattr(transformers, class_name)(**small)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnsupportedModelError, match=REFUSED[class_name] or "cannot be decoded exactly"):
        ModelRunner(model, 8)


def test_encoder_decoders_are_refused():
    config = transformers.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        ModelRunner(transformers.T5ForConditionalGeneration(config), 8)


def test_rotary_embeddings_that_change_with_length_limit_the_context():
    rope = {
        "rope_type": "dynamic",
        "factor": 4.0,
        "rope_theta": 10_000.0,
        "original_max_position_embeddings": 256,
    }
    model = tiny_model("llama", rope_parameters=rope)
    assert ModelRunner(model, 8).context_length == 256


def test_an_attention_argument_that_would_change_the_result_is_refused():
    model = tiny_model("llama")
    for layer in model.model.layers:
        attention, forward = layer.self_attn, layer.self_attn.forward
        attention.forward = lambda *args, forward=forward, **kwargs: forward(
            *args, s_aux=torch.ones(4), **kwargs
        )
    runner = ModelRunner(model, 8)
    with pytest.raises(UnsupportedModelError, match="'s_aux'"):
        runner.prefill([1, 2, 3])


def test_the_models_own_attention_is_back_after_our_passes():
    model = tiny_model("llama")
    before = model.config._attn_implementation
    runner = ModelRunner(model, 8)
    runner.prefill([1, 2, 3])
    assert model.config._attn_implementation == before
    assert model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=3, do_sample=False).shape == (1, 6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_linears_compute_what_plain_ones_do(dtype):
    linear = torch.nn.Linear(48, 40).to(dtype)
    rows = torch.randn(1, 8, 48, dtype=dtype)
    with torch.inference_mode():
        expected = torch.nn.functional.linear(rows.float(), linear.weight.float(), linear.bias.float())
        packed = PackedLinear(linear)(rows)
    assert packed.dtype == dtype
    torch.testing.assert_close(packed.float(), expected, rtol=0.01, atol=0.01)


def test_activations_in_runs_of_rows_are_bit_equal_at_every_row():
    silu = torch.nn.SiLU()
    runs = RowRuns(silu)
    rows = torch.randn(1, 16, 4864)
    whole = runs(rows)
    assert all(torch.equal(whole[:, row], silu(rows[:, row])) for row in range(16))


def test_layers_that_read_the_same_rows_share_a_product():
    model = tiny_model("llama")
    attention, plain = model.model.layers[0].self_attn, tiny_model("llama").model.layers[0].self_attn
    names = ("q_proj", "k_proj", "v_proj")
    pack_for_cpu(model)
    first, second = torch.randn(1, 8, 64), torch.randn(1, 8, 64)
    with torch.inference_mode():
        for rows in (first, second, first):
            for name in names:
                expected = getattr(plain, name)(rows)
                torch.testing.assert_close(getattr(attention, name)(rows), expected, rtol=1e-4, atol=1e-4)
        attention.q_proj(first)  # and its neighbours are not asked
        torch.testing.assert_close(attention.k_proj(second), plain.k_proj(second), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(attention.q_proj(first), plain.q_proj(first), rtol=1e-4, atol=1e-4)


def test_only_plain_linears_are_packed():
    class Quantised(torch.nn.Linear):
        pass

    model = torch.nn.Sequential(torch.nn.Linear(8, 8), Quantised(8, 8), torch.nn.SiLU())
    assert pack_for_cpu(model) == 1
    assert [type(module) for module in model] == [PackedLinear, Quantised, RowRuns]
