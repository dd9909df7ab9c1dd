"""Save the demo model, which is packaged as GGUF, in float32 as a folder that vLLM reads: python save_model.py FOLDER."""

import sys

from llma_rag.models.loading import load_model

loaded = load_model("smollm2-135m", device="cpu", dtype="float32")
loaded.model.save_pretrained(sys.argv[1])
loaded.tokenizer.save_pretrained(sys.argv[1])
