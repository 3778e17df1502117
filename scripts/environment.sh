# Sourced by the other scripts: changes to the repository's root and puts its virtual environment, made on first use, on PATH.
# shellcheck shell=bash

cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python python3.13 python3.12 python3.11 python3.10; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "charrnn: error: no Python 3.10 or newer on PATH; install one, or name it: PYTHON=/path/to/python $0" >&2
    return 1
}

environment=.venv
if [ ! -x "$environment/bin/python" ]; then
    python=$(find_python)
    echo "making $environment with $("$python" --version)" >&2
    "$python" -m venv "$environment" || {
        rm -rf "$environment"
        echo "charrnn: error: $python could not make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2
        exit 1
    }
fi
PATH="$PWD/$environment/bin:$PATH"
export PATH

# Installs again only when what is to be installed changed; the stamp is written last, so a broken install is repeated.
stamp="$environment/installed"
if ! cat pyproject.toml constraints.txt charrnn/ops/csrc/* | cmp -s - "$stamp"; then
    echo "installing charrnn and what it needs into $environment" >&2
    python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
    cat pyproject.toml constraints.txt charrnn/ops/csrc/* > "$stamp"
fi
