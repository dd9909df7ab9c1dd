"""A causal language model run in exactly two shapes: aligned prefill blocks and verify steps.

A prefill block is `PREFILL_BLOCK` positions, but for the last one of a prompt, whose length the prompt alone
decides; a verify step is always `candidates` times `width` positions, padded where there is less to do. What a
position computes therefore does not depend on how many drafted ids stand beside it, and decoding with drafts is
bit-identical to decoding without.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple, NoReturn

import psutil
import torch
from transformers import PreTrainedModel

from llma_rag.errors import ContextLengthError, ModelError
from llma_rag.models import attention
from llma_rag.models.graphs import Record, StaticSteps, cuda_graphs
from llma_rag.models.memory import PREFILL_BLOCK, LayerShape, SlotMemory, view_at
from llma_rag.models.prefixes import BlockKey, PrefixCache, block_keys
from llma_rag.models.rules import Rules
from llma_rag.models.states import HiddenStates, outputs_of, state_layer
from llma_rag.models.support import context_limit, require_supported, sliding_layers

DEFAULT_MAX_CONTEXT = 8192  # positions; more is a choice, because the KV memory is allocated at load
_MAX_WIDTH = 64
MAX_CANDIDATES = 16
_TAIL_STEP = 16  # rows by which the last block of a prompt is shorter, where its ids leave room


class StepShape(NamedTuple):
    """What a verify step computes: drafts side by side, and positions of each.

    >>> str(StepShape(4, 16))
    '4x16'
    """

    candidates: int
    width: int

    def __str__(self) -> str:
        return f"{self.candidates}x{self.width}" if self.candidates > 1 else str(self.width)


class ModelRunner:
    """Prefills prompts and verifies drafts; the `Verifier` of `llma_rag.decoding`.

    Args:
        model: a decoder-only transformer; its attention is exchanged during our passes only.
        width: positions per verify step.
        max_context: most positions; None takes the model's limit, at most `DEFAULT_MAX_CONTEXT`.
        threads: CPU threads per operation, a part of the shape; None takes torch's current number.
        prefix_cache_bytes: for prefill blocks that later prompts may begin with.
        record: records verify steps; None makes CUDA graphs of them where the model is on one GPU.
        candidates: drafts that a verify step checks side by side; each takes a KV memory.

    Raises:
        UnsupportedModelError: the architecture cannot be decoded exactly.
        ModelError: the width or context is out of range, or the KV memory does not fit.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        width: int,
        max_context: int | None = None,
        threads: int | None = None,
        prefix_cache_bytes: int = 0,
        record: Record | None = None,
        candidates: int = 1,
    ) -> None:
        require_supported(model)
        self.model = model.eval()
        self.width = _checked_width(width)
        self.candidates = _checked_candidates(candidates)
        self._config = model.config.get_text_config(decoder=True)
        self._exchanges_experts = model._can_set_experts_implementation()
        self.device = model.device
        self.dtype = model.dtype
        self.threads = threads or torch.get_num_threads()
        self.use_its_threads()
        _use_full_precision(self.device, self.dtype)
        self.vocab_size = int(self._config.vocab_size)
        self.context_length = _checked_context(context_limit(self._config), max_context, width)
        layer = state_layer(model)
        shapes, states = self._kept_shapes(layer)
        slots = view_at(self.context_length - 1) + _MAX_WIDTH  # padding rows write beyond the last view
        self._slots = slots
        all_shapes = shapes if states is None else [*shapes, states]
        self.kv_bytes = slots * candidates * sum(shape.bytes_per_slot for shape in all_shapes)
        _require_free_memory(self.kv_bytes + prefix_cache_bytes, self.context_length, self.device)
        self._memory = SlotMemory(shapes, slots, candidates, states)
        self.states = HiddenStates(layer, self._memory) if layer is not None and states else None
        self._stepped_at = 0  # position of the last verify step
        self.prefixes = PrefixCache(prefix_cache_bytes)
        self._resident: dict[int, BlockKey] = {}  # by number: the prefill blocks that the slots hold
        self._static_steps: StaticSteps | None = None
        self.recording = "none"
        record = record or (cuda_graphs(self.device) if _is_on_one_gpu(model) else None)
        if record is not None:
            self._start_recording(StaticSteps(self._static_step, self.device, record))

    def _start_recording(self, steps: StaticSteps) -> None:
        """Record steps from now on, if a first one can be recorded and computes what an unrecorded one does."""
        expected = [self.verify_logits(0, [token_id]) for token_id in (1, 2)]
        self._static_steps = steps
        try:
            found = [self.verify_logits(0, [token_id]) for token_id in (1, 2)]
        except RuntimeError as error:  # some models cannot be recorded; they run kernel by kernel
            self._static_steps, self.recording = None, f"failed: {error}"
        else:
            agree = all(torch.allclose(one[0], other[0]) for one, other in zip(expected, found, strict=True))
            self.recording = "steps are recorded" if agree else "failed: a recorded step differs"
            self._static_steps = steps if agree else None
        self.zero_memory()

    def smaller(self, context_length: int, candidates: int) -> ModelRunner:
        """Return another runner of the model, for steps at up to `context_length`."""
        most = min(self.context_length, context_length + 2 * _MAX_WIDTH)
        return ModelRunner(self.model, self.width, most, self.threads, candidates=candidates)

    def close(self) -> None:
        """Let the memory go, for another runner; this one is of no use any more."""
        self._static_steps = None
        self.states = None
        del self._memory
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys, values and states at one position, all layers and candidates together."""
        return self.kv_bytes // self._slots

    def use_its_threads(self) -> None:
        """Let torch use this runner's number of threads: with another, rows may round differently."""
        if self.device.type == "cpu" and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)

    def recall(self, prompt_ids: Sequence[int]) -> int:
        """Let the slots hold the whole blocks that earlier prompts began with, too; return how many ids that are.

        The last block of a prompt never is among them: it is computed for the id that follows.
        """
        keys = block_keys(prompt_ids[:-1])
        known = 0
        while known < len(keys) and self._recall_block(known, keys[known]):
            known += 1
        self.prefixes.touch(keys[:known])
        return known * PREFILL_BLOCK

    def prefill(
        self,
        prompt_ids: Sequence[int],
        before_block: Callable[[], None] = lambda: None,
        *,
        known: int = 0,
        rules: Rules | None = None,
    ) -> int:
        """Compute the prompt block by block; return the id that follows it.

        Args:
            prompt_ids: the prompt.
            before_block: called before each block; it may raise to stop.
            known: ids that `recall` has found.
            rules: change the logits.
        """
        self.require_room(len(prompt_ids))
        if not prompt_ids:
            raise ValueError("the prompt must have at least one id, got none")
        keys = block_keys(prompt_ids)
        for start in range(known, len(prompt_ids), PREFILL_BLOCK):
            before_block()
            logits = self.prefill_block(start, prompt_ids[start : start + PREFILL_BLOCK])
            if not logits.max().isfinite():
                self._refuse_overflow()
            number = start // PREFILL_BLOCK
            if number < len(keys):
                self._remember_block(number, keys[number])
        self.prefixes.touch(keys)
        if self.states is not None:
            self.states.begin(len(prompt_ids))
        if rules:
            logits = rules.apply(logits[None], prompt_ids)[0]
        return int(logits.argmax())

    def _recall_block(self, number: int, key: BlockKey) -> bool:
        """Let the slots hold a block that was computed before; return whether there is one."""
        if self._resident.get(number) == key:
            return True
        block = self.prefixes.get(key)
        if block is None:
            return False
        self._memory.write_block(number * PREFILL_BLOCK, block)
        self._resident[number] = key
        return True

    def _remember_block(self, number: int, key: BlockKey) -> None:
        self._resident[number] = key
        if self.prefixes.wants(key, self._memory.block_bytes):
            self.prefixes.put(key, self._memory.read_block(number * PREFILL_BLOCK))

    def _forget_resident_from(self, position: int) -> None:
        for number in [number for number in self._resident if number >= position // PREFILL_BLOCK]:
            del self._resident[number]

    def require_room(self, prompt_tokens: int) -> None:
        """Raise ContextLengthError unless the prompt leaves room for one more token."""
        if prompt_tokens >= self.context_length:
            raise ContextLengthError(
                f"the prompt has {prompt_tokens} tokens, but the context holds {self.context_length}, answer "
                "included; shorten the prompt, pass fewer documents, or raise max_context up to the model's limit"
            )

    def draft_room(self, position: int) -> int:
        """Return how many drafted ids a step at `position` may hold without leaving its view."""
        return min(self.width, view_at(position) - position, self.context_length - position) - 1

    def verify(
        self,
        position: int,
        candidates: Sequence[Sequence[int]],
        *,
        rules: Rules | None = None,
        before: Sequence[int] = (),
    ) -> list[list[int]]:
        """Read candidates side by side at `position` and after; return for each the id that follows each of its ids.

        Where a drafted id makes the model's numbers overflow, only the first id is read, as without drafts.

        Args:
            position: of the first id.
            candidates: at least one, each the last accepted id and drafted ones.
            rules: change the logits.
            before: the ids at the positions below, for the rules.
        """
        predicted = self._predictions(position, candidates, rules, before)
        if predicted is None and max(map(len, candidates)) > 1:
            self._memory.zero_slots(position, position + self.width)
            first_ids = [ids[:1] for ids in candidates]
            predicted = self._predictions(position, first_ids, rules, before)
        if predicted is None:
            self._refuse_overflow()
        return predicted

    def keep(self, candidate: int) -> None:
        """Let the slots hold, for all candidates, what the last step wrote for this one."""
        self._memory.keep(candidate, self._stepped_at, self.width)

    def _predictions(
        self, position: int, candidates: Sequence[Sequence[int]], rules: Rules | None, before: Sequence[int]
    ) -> list[list[int]] | None:
        """Return the ids that follow, None where a number is none."""
        logits = self.step_logits(position, candidates)
        if rules:
            return _ruled_predictions(logits, candidates, rules, before)
        # (candidates, width, 1); the row's NaN where it has one; in fp32, where the CPU is four times as quick as in bf16
        best = logits.float().argmax(dim=-1, keepdim=True)
        finite = logits.gather(2, best).isfinite()
        read = torch.cat([best, finite], dim=2).tolist()  # the step's one transfer to the host
        used = [rows[: len(ids)] for rows, ids in zip(read[: len(candidates)], candidates, strict=True)]
        if not all(usable for rows in used for _, usable in rows):
            return None
        return [[int(token_id) for token_id, _ in rows] for rows in used]

    def prefill_block(self, start: int, ids: Sequence[int]) -> torch.Tensor:
        """Compute one aligned block, or the beginning of the last one; return the logits (vocab,) after its last id."""
        rows = -(-len(ids) // _TAIL_STEP) * _TAIL_STEP
        view = start + PREFILL_BLOCK
        logits = self._forward(start, [ids], rows, view, logits_row=len(ids) - 1)  # (1, 1, vocab)
        return logits[0, 0]

    def verify_logits(self, position: int, ids: Sequence[int]) -> torch.Tensor:
        """Return the logits (width, vocab) of a step with one candidate; the first len(ids) rows mean anything."""
        return self.step_logits(position, [ids])[0]

    def step_logits(self, position: int, candidates: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the logits (candidates, width, vocab) of a verify step; rows without an id mean nothing."""
        self._stepped_at = position
        rows = [ids[: self.width] for ids in candidates]
        rows += [rows[0][:1]] * (self.candidates - len(rows))
        with attention.implementations(self._config, **self._row_independent_experts()):
            return self._forward(position, rows, self.width, view_at(position), logits_row=None)

    def zero_memory(self) -> None:
        """Forget everything computed so far."""
        self._resident.clear()
        self.prefixes.clear()
        self._memory.zero()

    def scramble_memory(self, generator: torch.Generator) -> None:
        """Fill the slots with random values, so that a probe need not prefill."""
        self._resident.clear()
        self._memory.scramble(generator)

    @torch.inference_mode()
    def stock_logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Return the logits (len(ids), vocab) of the model's own forward, for comparison."""
        logits: torch.Tensor = self.model(
            torch.tensor([list(ids)], device=self.device), use_cache=False
        ).logits
        return logits[0]

    @torch.inference_mode()
    def _forward(
        self, position: int, batch: Sequence[Sequence[int]], rows: int, view: int, logits_row: int | None
    ) -> torch.Tensor:
        self._forget_resident_from(position)
        padded = [[*ids, *[ids[0]] * (rows - len(ids))] for ids in batch]
        last = self.context_length - 1  # padding rows may reach beyond what the model has positions for
        positions = [min(position + row, last) for row in range(rows)]
        if self._static_steps is not None and logits_row is None:
            return self._static_steps(padded, positions, range(position, position + rows), view)
        self._memory.place(position, view)
        inputs = torch.tensor([*padded, positions], device=self.device)  # (batch + 1, rows)
        keep = 0 if logits_row is None else torch.tensor([logits_row], device=self.device)
        return self._logits(inputs[:-1], inputs[-1], keep)

    def _static_step(self, inputs: torch.Tensor, view: int) -> torch.Tensor:
        """Return the logits (candidates, rows, vocab) for ids, positions and slots, (candidates + 2, rows)."""
        self._memory.place_at(inputs[-1], view)
        return self._logits(inputs[:-2], inputs[-2], 0)

    def _logits(self, ids: torch.Tensor, positions: torch.Tensor, keep: int | torch.Tensor) -> torch.Tensor:
        """Return the logits (batch, rows, vocab) for ids (batch, rows) at positions (rows,)."""
        keeping_states = nullcontext() if self.states is None else self.states.kept()
        with attention.implementations(self._config, attn=attention.NAME), keeping_states:
            output = self.model(
                input_ids=ids,
                position_ids=positions.expand(ids.shape),
                cache=self._memory,
                use_cache=True,
                logits_to_keep=keep,
            )
        logits: torch.Tensor = output.logits
        return logits

    def _refuse_overflow(self) -> NoReturn:
        self.zero_memory()  # a number that is none stays one, in every row that multiplies it by zero
        raise ModelError(
            f"the model's numbers overflow in {str(self.dtype).removeprefix('torch.')}; "
            "load it with dtype='bfloat16' or 'float32'"
        )

    def _row_independent_experts(self) -> dict[str, str]:
        # The other implementations group a step's rows by expert, so that a row's result depends on its
        # neighbours. A prefill block always holds the same rows, so it may keep the faster one.
        return {"experts": "batched_mm"} if self._exchanges_experts else {}

    @torch.inference_mode()
    def _kept_shapes(self, layer: torch.nn.Module | None) -> tuple[list[LayerShape], LayerShape | None]:
        """Run one position through the model's own cache; return what each layer keeps, and the states of one."""
        probe = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        with outputs_of(layer) as outputs:
            cache = self.model(probe, use_cache=True).cache
        shapes = [
            LayerShape(
                heads=one.keys.shape[1],
                key_dim=one.keys.shape[3],
                value_dim=one.values.shape[3],
                dtype=one.keys.dtype,
                device=one.keys.device,
                is_sliding=is_sliding,
            )
            for one, is_sliding in zip(cache.layers, sliding_layers(self._config), strict=True)
        ]
        if not outputs or outputs[0].shape[:2] != (1, 1) or outputs[0].dim() != 3:
            return shapes, None
        states = outputs[0]  # (1, 1, dim)
        return shapes, LayerShape(1, 0, states.shape[-1], states.dtype, states.device, is_sliding=False)


def _ruled_predictions(
    logits: torch.Tensor, candidates: Sequence[Sequence[int]], rules: Rules, before: Sequence[int]
) -> list[list[int]] | None:
    predicted: list[list[int]] = []
    for rows, ids in zip(logits[: len(candidates)], candidates, strict=True):
        used = rows[: len(ids)]
        if not bool(used.amax(dim=-1).isfinite().all()):
            return None
        predicted.append(rules.apply(used, [*before, *ids]).argmax(dim=-1).tolist())
    return predicted


def _is_on_one_gpu(model: PreTrainedModel) -> bool:
    devices = {parameter.device for parameter in model.parameters()}
    return len(devices) == 1 and next(iter(devices)).type == "cuda"


def _checked_width(width: int) -> int:
    if not 2 <= width <= _MAX_WIDTH:
        raise ModelError(f"width must be from 2 to {_MAX_WIDTH}, got {width}; 8 and 16 are good choices")
    return width


def _checked_candidates(candidates: int) -> int:
    if not 1 <= candidates <= MAX_CANDIDATES:
        raise ModelError(
            f"candidates must be from 1 to {MAX_CANDIDATES}, got {candidates}; 1 or 4 are good choices"
        )
    return candidates


def _checked_context(limit: int | None, max_context: int | None, width: int) -> int:
    if max_context is None:
        return min(limit or DEFAULT_MAX_CONTEXT, DEFAULT_MAX_CONTEXT)
    if max_context < 2 * width or (limit is not None and max_context > limit):
        raise ModelError(
            f"max_context must be from twice the width ({2 * width}) to {limit or 'any length'}, got {max_context}"
        )
    return max_context


def _use_full_precision(device: torch.device, dtype: torch.dtype) -> None:
    """Keep fp32 products in fp32: TF32 rounds their factors to ten bits of mantissa."""
    if device.type == "cuda" and dtype == torch.float32:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False


def _require_free_memory(wanted: int, context_length: int, device: torch.device) -> None:
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif device.type == "cpu":
        free = psutil.virtual_memory().available
    else:
        return
    if wanted > free:
        raise ModelError(
            f"the KV memory for a context of {context_length} tokens and the prefix cache need {wanted / 2**20:.0f} MiB, "
            f"but {free / 2**20:.0f} MiB are free on {device}; lower max_context, prefix_cache_mb, or candidates"
        )
