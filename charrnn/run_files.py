"""What lies in the directory of a run, by name. Without torch, so that a listing of runs is there at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

CONFIG = "config.yaml"
WRITTEN_BY = "# Written by charrnn "  # how a config.yaml begins that a run has made
STATE, PREVIOUS_STATE = "last.state.pt", "previous.state.pt"
BEST, LAST = MODELS = ("best.safetensors", "last.safetensors")  # of a run, beside which lies all that is its own
METRICS, SAMPLES = JOURNALS = ("metrics.jsonl", "samples.txt")
HEARTBEAT = "heartbeat.json"  # how the run is and how it ended, as heartbeat.py writes it
FILES = (CONFIG, *MODELS, STATE, PREVIOUS_STATE, *JOURNALS, HEARTBEAT)
TEXTS = TEXT, TEXT_INDEX = "text.safetensors", "text.index.safetensors"  # there only with train.keep_text
REFUSED = "refused.state.pt"  # there only where a state could not be gone on from, and the one before it could
CURVES = "curves.png"  # drawn at the end, where matplotlib is
EVENTS = "tensorboard"  # a folder, there only with --tensorboard
OWN = (*FILES, *TEXTS, REFUSED, CURVES)
STEP = re.compile(r"step-(\d{8}|[1-9]\d{8,})\.safetensors", re.ASCII)  # what train.keep keeps
LOCK = ".lock"  # there while a job is at work


def is_own(name: str) -> bool:
    """Whether a file of this name, in the directory of a run, is the run's."""
    return name in OWN or STEP.fullmatch(name) is not None


def own_files(model: Path) -> Iterator[Path]:
    """A model file, and where it is one of a run those that lie beside it and are the run's; else those that would be read with it."""
    yield model
    if model.name in MODELS or STEP.fullmatch(model.name):
        yield from (file for file in model.parent.iterdir() if is_own(file.name))
    else:
        yield from map(model.with_name, TEXTS)


def is_partial(path: Path) -> bool:
    """What write_atomically leaves behind when it is killed."""
    match = re.fullmatch(r"\.(.+)\.[0-9]+\.partial", path.name)
    return match is not None and is_own(match[1])
