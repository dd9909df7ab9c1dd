"""`python -m llma_rag.cli`."""

from llma_rag.cli import main

main()
