#!/usr/bin/env bash
# All that a change must pass: lint, types, tests. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ruff check
mypy
exec scripts/test.sh "$@"
