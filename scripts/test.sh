#!/usr/bin/env bash
# Installs charrnn into .venv and passes the tests; arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
# A file of tests to a process, a process to a core, and in each of them one thread: two that wait for each other would be slower.
export OMP_NUM_THREADS=1
exec python -m pytest -n auto --maxprocesses 4 --dist loadfile "$@"
