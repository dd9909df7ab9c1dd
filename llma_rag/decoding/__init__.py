"""Greedy decoding with copied drafts: token ids in, token ids out, standard library only.

This package knows neither torch nor text. `greedy` is the loop, `drafting` decides what to copy,
`matching` finds where the output's last ids occurred before, and `naive` is the slow twin of
matching and the loop that the tests compare them with.
"""

from llma_rag.decoding.drafting import DraftConfig, Drafter, NoDrafter, ReferenceDrafter, Scorer
from llma_rag.decoding.greedy import Step, Verifier, greedy_decode
from llma_rag.decoding.matching import IndexCache, NgramIndex

__all__ = [
    "DraftConfig",
    "Drafter",
    "IndexCache",
    "NgramIndex",
    "NoDrafter",
    "ReferenceDrafter",
    "Scorer",
    "Step",
    "Verifier",
    "greedy_decode",
]
