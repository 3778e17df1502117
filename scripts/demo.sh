#!/usr/bin/env bash
# Installs charrnn into .venv, trains a small model on the song lyrics that come with it, where that is not done yet, and lets it write.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

charrnn train --config configs/demo.yaml --resume  # what was trained before is not trained again

echo
echo "Three songs under given titles:"
# By the last weights: what is best for unseen songs of so small a text knows fewer words.
for title in "The Old Boat" "Winter Train" "My Window"; do
    echo
    # The last line is the next song's title, or cut short.
    charrnn sample runs/demo/last.safetensors --prime "# $title"$'\n' --stop '\n#' --length 400 --temperature 0.5 --seed 1 | sed '$d'
done
echo
echo "Your own: charrnn sample runs/demo --prime 'In the morning'   (after: source .venv/bin/activate)"
