#!/usr/bin/env bash
# Installs charrnn into .venv, trains a small model on the poems that come with it, and lets it write.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

charrnn train --config configs/demo.yaml --overwrite

echo
echo "Four poems under given titles; the model writes what follows the colon:"
echo
for title in 春晓: 夜雨: 秋山: 小猫:; do
    charrnn sample runs/demo --prime "$title" --temperature 0.7 --seed 1
done
echo
echo "Your own: charrnn sample runs/demo --prime '江边:'   (after: source .venv/bin/activate)"
