#!/usr/bin/env bash
# Installs charrnn into .venv and passes the tests; arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec python -m pytest "$@"
