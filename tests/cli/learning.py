"""Models that have learned a small text by heart."""

from __future__ import annotations

from pathlib import Path

from charrnn.checkpoint import save_model
from charrnn.config import Config
from charrnn.tasks import load_task


def learn(config: Config, path: Path, most: int, rate: float = 4e-2) -> None:
    """Take at least so many steps, whole epochs of them, and write the model there."""
    import torch

    task = load_task(config)
    model = task.model()
    optimizer = torch.optim.Adam(model.parameters(), rate)
    steps = epoch = 0
    while steps < most:
        for batch in task.batches("train", epoch=epoch):
            loss, tally, _ = task.loss(model, batch, None)
            optimizer.zero_grad()
            torch.autograd.backward(loss / tally.count)
            optimizer.step()
            steps += 1
        epoch += 1
    save_model(path, model, config, task.vocabulary, steps, {}, task.labels)
