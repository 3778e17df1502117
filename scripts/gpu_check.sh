#!/usr/bin/env bash
# For a machine with a GPU: the tests that need one, then speed against a plain loop, as one markdown table.
# Uses the Python that is on PATH (or $PYTHON) with its own torch>=2.9; installs nothing. Usage: scripts/gpu_check.sh [TABLE.md]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
table=${1:-gpu_check.md}

"$python" - <<'PYTHON'
import importlib.util
import sys

needed = ["torch", "numpy", "yaml", "pydantic", "safetensors", "pytest", "pytest_timeout", "hypothesis"]
if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
    sys.exit(f"charrnn: error: {sys.executable} has no {', '.join(missing)}; install them, or name another Python: PYTHON=…")

import torch

if sys.version_info < (3, 10) or tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9):
    sys.exit(f"charrnn: error: Python {sys.version.split()[0]} with torch {torch.__version__}; needs Python 3.10 and torch 2.9")
if not torch.cuda.is_available():
    sys.exit(f"charrnn: error: torch {torch.__version__} sees no CUDA GPU here")
print(torch.cuda.get_device_name(), "torch", torch.__version__)
PYTHON

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
"$python" -m pytest -m gpu -p no:cacheprovider

rm -f "$table.partial"
for shape in "--hidden 512 --batch 32 --window 128" "--hidden 1024 --layers 2 --batch 128 --window 128" "--cell gru --hidden 512 --batch 64 --window 128"; do
    # shellcheck disable=SC2086
    "$python" scripts/bench_training.py --device cuda --seconds 15 --rounds 3 $shape >> "$table.partial"
done
# One heading, then the rows.
awk 'NR <= 3 || !/^(torch|\| model|\| ---) /' "$table.partial" > "$table"
rm "$table.partial"
cat "$table"
