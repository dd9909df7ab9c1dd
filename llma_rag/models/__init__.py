"""Models: loading them, and running them in two fixed shapes. The only package that knows transformers.

`loading` finds weights and tokenizer, `demo_model` installs the demo model, `linears` prepares a model
for the CPU, `runner` runs prefill blocks and verify steps over the KV `memory` with our `attention`, reusing
blocks by their `prefixes`, `rules` change logits, `probe` checks bit by bit that a step's rows are independent,
`states` tell which places of the context are alike, and `calibration` chooses the step's shape. Documents and frameworks are unknown here.
"""

from llma_rag.models.calibration import Calibration, exact_runner
from llma_rag.models.loading import LoadedModel, load_model
from llma_rag.models.probe import Verdict, cached_probe, require_agreement
from llma_rag.models.rules import RuleOptions, Rules
from llma_rag.models.runner import ModelRunner, StepShape

__all__ = [
    "Calibration",
    "LoadedModel",
    "ModelRunner",
    "RuleOptions",
    "Rules",
    "StepShape",
    "Verdict",
    "cached_probe",
    "exact_runner",
    "load_model",
    "require_agreement",
]
