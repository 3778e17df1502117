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
    "ops": "",
    "metrics": "ops",
    "plots": "metrics",
    "tables": "metrics",
    "device": "config",
    "interrupt": "",
    "lock": "",
    "threads": "",
    "constraints": "",
    "layers": "ops",
    "models": "config ops layers",
    "data": "config lock paths",
    "texts": "options data constraints",
    "model_file": "paths",
    "inspecting": "config data",
    "optimization": "config ops",
    "checkpoint": "atomic plain_yaml model_file config data models",
    "run_directory": "atomic config metrics lock checkpoint",
    "run_state": "",
    "sampling": "options data constraints texts",
    "engine": "plain_yaml options model_file data ops texts",
    "fetching": "lock data",
    "novelty": "atomic constraints checkpoint data run_directory",
    "prosody": "",
    "verse": "data constraints prosody",
    "decoding": "config data models ops",
    "tagging": "config data layers sampling",
    "tasks": "config options metrics tables device ops layers models data sampling decoding tagging",
    "gradients": "config metrics device data tasks",
    "planning": "config data device gradients ops models tasks",
    "evaluation": "config metrics data sampling tasks",
    "scoring": "data sampling evaluation metrics tasks",
    "classifying": "data metrics tasks",
    "generation": "options randomness data constraints texts sampling",
    "search": "options data sampling constraints",
    "filling": "data sampling",
    "transcribing": "config data models decoding",
    "captioning": "config options device data models sampling decoding tasks",
    "gallery": "data captioning",
    "finetuning": "config data models checkpoint",
    "training": "atomic paths model_file "
    "config metrics device interrupt gradients planning data optimization checkpoint run_directory run_state novelty "
    "threads tasks evaluation finetuning",
    "web": "options engine data constraints texts generation verse models checkpoint device "
    "filling classifying tagging captioning transcribing",
    "cli": "web atomic paths options model_file run_directory engine "
    "config metrics device ops models tasks data checkpoint sampling constraints novelty training evaluation scoring generation "
    "filling classifying tagging transcribing captioning gallery decoding plots tables fetching inspecting verse search",
    "__main__": "cli",
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
