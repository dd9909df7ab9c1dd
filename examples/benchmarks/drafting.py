"""How well drafts are chosen: a model answers, then its own answers are forced under other shapes and without its states.

    python examples/benchmarks/drafting.py questions.jsonl … --unseen 12 --json out.json

Each file has lines with a `query` and `docs`. The weights of the votes were fitted by this: on what comes after the first
12 samples of each of three files, the unseen ones.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from llma_rag import Engine, documents_prompt
from llma_rag.bench.data import read_samples
from llma_rag.bench.replay import Forced, Tally, force
from llma_rag.decoding import ReferenceDrafter
from llma_rag.models import StepShape
from llma_rag.text import alike_ids, prompt_ids

SHAPES = [StepShape(candidates, width) for candidates in (1, 2, 4, 8) for width in (4, 8, 16, 32)]


@dataclass(frozen=True)
class Answered:
    """An answer of the model, with the states of a layer at every position, (positions, dim)."""

    forced: Forced
    states: torch.Tensor


class KeptStates:
    """The `Scorer` over states that were kept."""

    def __init__(self, states: torch.Tensor, prompt_length: int) -> None:
        states = states.float()
        self._directions = torch.nn.functional.normalize(states - states[:prompt_length].mean(0), dim=-1)

    def scores(self, candidate_positions: Sequence[int], position: int) -> list[float]:
        """Return the cosines of the candidates' states with that at `position`."""
        scores: list[float] = (
            self._directions[list(candidate_positions)] @ self._directions[position]
        ).tolist()
        return scores


def answers(engine: Engine, path: Path, limit: int | None, max_tokens: int) -> Iterator[Answered]:
    """Yield what the model answers to each sample that fits."""
    for sample in read_samples(path, limit=limit):
        prompt = documents_prompt(sample.query, sample.docs[:5])
        ids = prompt_ids(engine.tokenizer, prompt)
        if len(ids) + max_tokens > engine.runner.context_length:
            print(f"{path.name}: sample {sample.id} does not fit and is left out")
            continue
        answer = engine.generate(prompt, max_tokens=max_tokens)
        states = engine.runner.states
        assert states is not None
        kept = states.of_positions(len(ids) + len(answer.token_ids) - 1)
        yield Answered(Forced(sample.id, [], ids, answer.token_ids), kept)


def tokens_per_pass(
    answered: Sequence[Answered], shape: StepShape, alike: list[int], *, states: bool
) -> float:
    """Return what drafting reaches when these answers are forced."""
    tally = Tally()
    for one in answered:
        scorer = KeptStates(one.states, len(one.forced.prompt)) if states else None
        drafter = ReferenceDrafter([], one.forced.prompt, scorer=scorer, alike=alike)
        force(one.forced, drafter, shape.width, tally, candidates=shape.candidates)
    return tally.tokens / tally.passes


def main() -> None:
    """Answer, force, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--limit", type=int, help="most samples of a file")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument(
        "--unseen", type=int, default=12, help="samples at the beginning that nothing was fitted on"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    engine = Engine.load(arguments.model)
    alike = alike_ids(engine.tokenizer)
    by_file = {
        path: list(answers(engine, path, arguments.limit, arguments.max_tokens)) for path in arguments.files
    }
    parts = {"unseen": slice(0, arguments.unseen), "fitted": slice(arguments.unseen, None)}
    rows = []
    for part, chosen in parts.items():
        for states in (True, False):
            for shape in SHAPES:
                reached = [
                    tokens_per_pass(answered[chosen], shape, alike, states=states)
                    for answered in by_file.values()
                    if answered[chosen]
                ]
                if reached:
                    mean = prod(reached) ** (1 / len(reached))
                    rows.append([part, states, str(shape), *reached, mean])
                    figures = "  ".join(f"{one:.3f}" for one in (*reached, mean))
                    print(f"{part}  {'states' if states else 'no states':9}  {shape!s:>5}  {figures}")
    if arguments.json:
        columns = ["part", "states", "shape", *(path.name for path in by_file), "geometric mean"]
        arguments.json.write_text(json.dumps({"columns": columns, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
