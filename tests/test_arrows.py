"""Imports point one way, and only the command line prints."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "charrnn"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Each room with the rooms it may import; every room may import itself, `errors` and the version.
LEFT = {
    "errors": "",
    "plain_yaml": "",
    "paths": "",
    "atomic": "",
    "options": "",
    "randomness": "",
    "config": "options paths plain_yaml",
    "run_files": "",
    "ranking": "",
    "model_file": "paths",
    "journal": "paths model_file ranking run_files",
    "ops": "",
    "metrics": "ops",
    "tables": "metrics",
    "device": "config",
    "exits": "",
    "interrupt": "exits",
    "lock": "",
    "threads": "",
    "constraints": "",
    "distributed": "atomic",
    "layers": "ops",
    "models": "config ops layers",
    "data": "config lock paths",
    "texts": "options data constraints",
    "inspecting": "config data",
    "optimization": "config ops",
    "checkpoint": "atomic plain_yaml model_file config data models",
    "run_directory": "atomic config journal lock checkpoint run_files",
    "heartbeat": "atomic",
    "run_state": "",
    "claims": "atomic",
    "runs": "plain_yaml ranking journal lock model_file run_files",
    "sweep": "atomic plain_yaml paths config claims runs",
    "sampling": "options data constraints texts",
    "engine": "plain_yaml options model_file data ops texts",
    "fetching": "lock data",
    "novelty": "atomic constraints checkpoint data run_files",
    "prosody": "",
    "verse": "data constraints prosody",
    "decoding": "config data models ops",
    "tagging": "config data layers sampling",
    "tasks": "config options ranking metrics tables device ops layers models data sampling decoding tagging",
    "gradients": "config distributed metrics device data tasks",
    "feeding": "data device tasks",
    "cuda_graph": "config metrics data device gradients optimization tasks",
    "planning": "config cuda_graph data device gradients ops models tasks",
    "evaluation": "config distributed metrics data sampling tasks",
    "scoring": "data sampling evaluation metrics tasks",
    "inside": "data ops models sampling evaluation",
    "nameable": "",
    "finding": "data ops models inside nameable",
    "bptt": "ops layers models",
    "classifying": "data metrics tasks",
    "generation": "options randomness data constraints texts sampling",
    "search": "options data sampling constraints",
    "filling": "data sampling",
    "transcribing": "config data models decoding",
    "captioning": "config options device data models sampling decoding tasks",
    "page": "",
    "chart": "ranking journal page",
    "coloured": "tables page inside finding",
    "plots": "ranking journal metrics chart bptt",
    "gallery": "data captioning page",
    "report": "ranking plain_yaml journal model_file run_files page chart",
    "watching": "ranking plain_yaml lock heartbeat journal tables run_files",
    "finetuning": "config data models checkpoint",
    "training": "atomic distributed paths model_file run_files "
    "config journal metrics device interrupt heartbeat gradients planning data optimization checkpoint run_directory run_state novelty "
    "threads tasks evaluation finetuning feeding cuda_graph",
    "tensorboard": "run_files training",
    "trials": "atomic distributed journal metrics ops interrupt lock claims runs sweep training",
    "web": "options engine data constraints texts generation verse models checkpoint device "
    "filling classifying tagging captioning transcribing",
    "cli": "web tensorboard atomic paths exits interrupt journal options model_file run_files run_directory runs sweep trials engine "
    "config metrics device ops models tasks data checkpoint sampling constraints novelty training evaluation scoring generation "
    "inside finding coloured bptt "
    "filling classifying tagging transcribing captioning page chart gallery report watching decoding plots tables fetching "
    "inspecting verse search",
    "__main__": "interrupt cli",
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and room of every import of charrnn's own, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import hides where it points"
            # `from charrnn import training` names a room, `from charrnn import __version__` does not.
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "charrnn" else [node.module or ""]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "charrnn" and len(parts) > 1 and not parts[1].startswith("__version"):
                yield node.lineno, parts[1]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_to_the_left(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        assert not list(imported(path))
        return
    assert here in LEFT, f"{here} is a new room: say in LEFT what it may import"
    allowed = {here, "errors", *LEFT[here].split()}
    wrong = [f"{path.name}:{line} imports {name}" for line, name in imported(path) if name not in allowed]
    assert not wrong, f"{here} may import {sorted(allowed)}: {wrong}"


def test_no_arrow_closes_a_circle() -> None:
    order = list(LEFT)
    for name, others in LEFT.items():
        assert all(order.index(other) < order.index(name) for other in others.split()), name


@pytest.mark.parametrize("path", [p for p in MODULES if room(p) != "cli"], ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_command_line_prints(path: Path) -> None:
    called = [node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert not [name.lineno for name in called if isinstance(name, ast.Name) and name.id == "print"]
