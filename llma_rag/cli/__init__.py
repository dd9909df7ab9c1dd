"""The command line: arguments and printing."""

from llma_rag.cli.app import main

__all__ = ["main"]
