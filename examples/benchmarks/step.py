"""What a step, a prefill and a second turn cost beside transformers' `generate`, and how much memory it takes.

Run it alone on the machine: `python examples/benchmarks/step.py [--model NAME] [--dtype NAME] [--tokens 1000]`.
Everything is warmed up and interleaved with the baseline; times are medians.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table
from transformers import DynamicCache

from llma_rag import Engine
from llma_rag.models import ModelRunner, load_model
from llma_rag.models.probe import device_name, probe
from llma_rag.workers import worker_for

WIDTHS = (4, 8, 16, 32)
ROUNDS = 25


def seconds(run: Callable[[], Any]) -> float:
    """Return how long something takes."""
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def medians(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each, interleaved, the first two rounds left out."""
    measured: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 2):
        for name, run in runs.items():
            measured[name].append(seconds(run))
    return {name: median(values[2:]) for name, values in measured.items()}


@torch.inference_mode()
def steps_and_prefill(stock: Any, ours: Any, tokens: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the seconds of one step and of one prefill, by name."""
    device = stock.device
    ids = torch.randint(100, 5000, (1, tokens), generator=torch.Generator().manual_seed(0)).to(device)
    runners = {width: ModelRunner(ours, width, 2 * tokens) for width in WIDTHS}
    widths = [width for width, runner in runners.items() if probe(runner).exact]
    cache = DynamicCache()
    stock(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    one = torch.tensor([[7]], device=device)

    def generate_step() -> None:
        stock(one, past_key_values=cache, use_cache=True, logits_to_keep=1).logits.argmax().item()

    prompt = ids[0].tolist()
    for width in widths:
        runners[width].prefill(prompt)
    steps: dict[str, Callable[[], Any]] = {"generate": generate_step}
    for width in widths:
        steps[f"width {width}"] = lambda width=width: runners[width].verify(tokens, [[7] * width])
    prefills: dict[str, Callable[[], Any]] = {
        "generate": lambda: stock(ids, past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1),
        "ours": lambda: runners[widths[0]].prefill(prompt),
    }
    return medians(steps, ROUNDS), medians(prefills, 5)


def without_overlap(engine: Engine, stock: Any) -> dict[str, float]:
    """Return the decode seconds of an answer that nothing can be copied into."""
    prompt = [{"role": "user", "content": "Write down some words that have nothing to do with each other."}]
    ids = engine.tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    tokens = 48

    def theirs() -> None:
        stock.generate(ids.to(stock.device), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)

    def drafted() -> None:
        engine.generate(prompt, max_tokens=tokens, min_tokens=tokens, reuse_prefix=False)

    def undrafted() -> None:
        engine.generate(prompt, max_tokens=tokens, min_tokens=tokens, reuse_prefix=False, draft=False)

    worker = worker_for(engine.model, engine.runner.device.type)
    return medians(
        {"generate": lambda: worker.submit(theirs).result(), "ours": drafted, "ours, no drafts": undrafted}, 3
    )


def two_turns(engine: Engine, tokens: int) -> list[float]:
    """Return the seconds to the first token of the first and of the second turn over the same documents."""
    words = " ".join(f"word{number}" for number in range(tokens))
    documents = engine.tokenizer.decode(engine.tokenizer(words).input_ids[:tokens])
    first = [{"role": "user", "content": f"{documents}\n\nWhat is this?"}]
    worker_for(engine.model, engine.runner.device.type).submit(engine.runner.zero_memory).result()
    answer = engine.generate(first, max_tokens=48)
    second = [
        *first,
        {"role": "assistant", "content": answer.text},
        {"role": "user", "content": "And what else?"},
    ]
    return [answer.timings.prefill_s, engine.generate(second, max_tokens=8).timings.prefill_s]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, default=1000)
    arguments = parser.parse_args()

    process = psutil.Process()
    before = process.memory_info().rss
    engine = Engine.load(arguments.model, dtype=arguments.dtype)
    engine.generate("Warming up.", max_tokens=16)
    taken = process.memory_info().rss - before

    console = Console()
    console.print(
        f"{engine.name}, {str(engine.runner.dtype).removeprefix('torch.')}, {device_name(engine.runner.device)}, "
        f"torch {torch.__version__}, calibrated width {engine.runner.width}, {arguments.tokens} tokens of context"
    )
    turns = two_turns(engine, arguments.tokens)
    stock = load_model(arguments.model, dtype=arguments.dtype).model
    weights = sum(parameter.nbytes for parameter in stock.parameters())
    worker = worker_for(engine.model, engine.runner.device.type)
    steps, prefills = worker.submit(steps_and_prefill, stock, engine.model, arguments.tokens).result()
    free = without_overlap(engine, stock)

    table = Table("what", "ms", "over generate")
    for title, measured in (("step", steps), ("prefill", prefills), ("48 tokens, nothing to copy", free)):
        for name, value in measured.items():
            table.add_row(f"{title}: {name}", f"{value * 1e3:.1f}", f"{value / measured['generate']:.2f}")
    table.add_row("first token, first turn", f"{turns[0] * 1e3:.1f}", "")
    table.add_row(
        "first token, second turn", f"{turns[1] * 1e3:.1f}", f"{turns[1] / turns[0]:.2f} of the first"
    )
    console.print(table)
    console.print(
        f"memory of the process: {taken / 2**20:.0f} MiB more than before loading; weights as loaded {weights / 2**20:.0f}, "
        f"KV memory {engine.runner.kv_bytes / 2**20:.0f} MiB"
    )


if __name__ == "__main__":
    main()
