"""`python -m llma_rag.cli`."""

from llma_rag.cli import main

if __name__ == "__main__":
    main()
