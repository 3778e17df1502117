#!/usr/bin/env bash
# Installs charrnn into .venv and passes the tests; arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# The tests of the pages want a browser and what drives it. Where they cannot be had, those tests are skipped and all others run.
have_client() { python -c 'import playwright, axe_playwright_python' 2>/dev/null; }
have_browser() { command -v chromium || command -v chromium-browser || command -v google-chrome; }
if ! have_client; then
    echo "installing what drives a browser into $environment" >&2
    python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt playwright axe-playwright-python \
        || echo "charrnn: warning: playwright cannot be installed here, so the browser tests are skipped" >&2
fi
if ! have_browser >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing chromium" >&2
        { timeout 60 apt-get -qq update && DEBIAN_FRONTEND=noninteractive timeout 180 apt-get -qq install --yes --no-install-recommends chromium fonts-noto-cjk; } >/dev/null \
            || echo "charrnn: warning: chromium cannot be installed here, so the browser tests are skipped" >&2
    else
        echo "charrnn: warning: no chromium, so the browser tests are skipped; as root on Debian: apt-get install chromium" >&2
    fi
fi

# A file of tests to a process, a process to a core, and in each of them one thread: two that wait for each other would be slower.
export OMP_NUM_THREADS=1
exec python -m pytest -n auto --maxprocesses 4 --dist loadfile "$@"
