"""Models that have learned a small text by heart."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from charrnn.checkpoint import save_model
from charrnn.config import Config
from charrnn.models import Architecture
from charrnn.tasks import load_task
from charrnn.tasks.task import Task
from tests.test_cli import Said, said_to


def trained(task: Task, least: int, rate: float) -> tuple[Architecture, int]:
    """A model after at least so many steps, whole epochs of them; and how many it took."""
    import torch

    model = task.model()
    optimizer = torch.optim.Adam(model.parameters(), rate)
    steps = epoch = 0
    while steps < least:
        for batch in task.batches("train", epoch=epoch):
            loss, tally, _ = task.loss(model, batch, None)
            optimizer.zero_grad()
            torch.autograd.backward(loss / tally.count)
            optimizer.step()
            steps += 1
        epoch += 1
    return model, steps


def learn(config: Config, path: Path, least: int, rate: float = 4e-2) -> None:
    """Train at least so many steps, and write the model there."""
    task = load_task(config)
    model, steps = trained(task, least, rate)
    save_model(path, model, task.config, task.vocabulary, steps, {}, task.labels)


def runner(
    learned: Path, command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Said]:
    """The command line in this process, in a copy of a folder with models; `command=` names another command than that."""
    shutil.copytree(learned, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments, command=command: said_to(capsys, command, *arguments)
