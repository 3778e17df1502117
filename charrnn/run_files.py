"""What lies in the directory of a run, by name. Without torch, so that a listing of runs is there at once."""

from __future__ import annotations

from pathlib import Path

CONFIG = "config.yaml"
WRITTEN_BY = "# Written by charrnn "  # how a config.yaml begins that a run has made
STATE = "last.state.pt"
BEST, LAST = MODELS = ("best.safetensors", "last.safetensors")  # of a run, beside which lies all that is its own
METRICS, _ = JOURNALS = ("metrics.jsonl", "samples.txt")
HEARTBEAT = "heartbeat.json"  # how the run is and how it ended, as heartbeat.py writes it
FILES = (CONFIG, *MODELS, STATE, *JOURNALS, HEARTBEAT)
TEXTS = TEXT, TEXT_INDEX = "text.safetensors", "text.index.safetensors"  # there only with train.keep_text
OLDER = PREVIOUS_STATE, _ = ("previous.state.pt", "previous.safetensors")
EVENTS = "tensorboard"  # a folder, there only with --tensorboard
OWN = (*FILES, *TEXTS, *OLDER)
LOCK = ".lock"  # there while a job is at work


def is_partial(path: Path) -> bool:
    """What write_atomically leaves behind when it is killed."""
    return path.name.endswith(".partial") and any(path.name.startswith(f".{name}.") for name in OWN)
