#!/usr/bin/env bash
# For a machine with a GPU: the tests that need one, then training speed against a plain loop, with CUDA graphs and without, as one
# markdown table for docs/performance.md, "On a GPU". Nothing is timed where a test fails.
# Uses the Python that is on PATH (or $PYTHON) with its own torch>=2.9; installs nothing. Usage: scripts/gpu_check.sh [TABLE.md]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
table=${1:-gpu_check.md}

machine=$("$python" - <<'PYTHON'
import importlib.util
import platform
import sys

needed = ["torch", "numpy", "yaml", "pydantic", "safetensors", "charset_normalizer", "pytest", "pytest_timeout", "hypothesis"]
if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
    sys.exit(f"charrnn: error: {sys.executable} has no {', '.join(missing)}; install them, or name another Python: PYTHON=…")

import torch

if sys.version_info < (3, 10) or tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9):
    sys.exit(f"charrnn: error: Python {sys.version.split()[0]} with torch {torch.__version__}; needs Python 3.10 and torch 2.9")
if not torch.cuda.is_available():
    sys.exit(f"charrnn: error: torch {torch.__version__} sees no CUDA GPU here")
found = torch.cuda.get_device_properties(0)
versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
print(f"{found.name}, {found.total_memory / 2**30:.0f} GiB, {versions}, Python {platform.python_version()}, {platform.platform()}")
PYTHON
)
echo "$machine"

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
# With it cuBLAS and cuDNN's recurrences give the same bits each time, which the test of --resume asks for (PyTorch, "Reproducibility").
export CUBLAS_WORKSPACE_CONFIG=:4096:8
mapfile -t tests < <(grep -rl "mark\.gpu" tests)
"$python" -m pytest -m gpu -p no:cacheprovider "${tests[@]}"
unset CUBLAS_WORKSPACE_CONFIG

partial=$table.partial
trap 'rm -f "$partial"' EXIT
bench() { "$python" scripts/bench_training.py --device cuda --cuda-graph auto false --seconds 15 --rounds 3 "$@" >> "$partial"; }
: > "$partial"
bench --shapes small wide deep vocabulary
bench --shapes small deep --cell gru
bench --shapes deep --dropout 0.3
bench --hidden 1024 --layers 2 --batch 128 --window 128
# What it was measured on, one heading, then the rows.
{
    echo "$machine: characters a second, medians of three rounds of 15 seconds in turn"
    echo
    awk '/^\| (model|---) / { if (heading++ < 2) print; next } /^\| /' "$partial"
} > "$table"
cat "$table"
