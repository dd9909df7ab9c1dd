"""Drafts from references inside vLLM, which decodes: for more traffic, or a larger model, than one process serves.

It lives in vLLM's environment, so it needs the standard library, `decoding` and what vLLM has. vLLM loads
`ReferenceProposer` by its name:

    vllm serve MODEL --speculative-config
        '{"method": "custom_class", "model": "llma_rag.vllm.ReferenceProposer", "num_speculative_tokens": 8}'

and a request brings its references as ids in `vllm_xargs`; without, its prompt is the reference.
"""

from llma_rag.vllm.proposer import ReferenceProposer
from llma_rag.vllm.supported import SUPPORTED_VERSIONS, register
from llma_rag.vllm.xargs import DRAFT, REFERENCES, SEPARATOR, as_xargs

__all__ = [
    "DRAFT",
    "REFERENCES",
    "SEPARATOR",
    "SUPPORTED_VERSIONS",
    "ReferenceProposer",
    "as_xargs",
    "register",
]
