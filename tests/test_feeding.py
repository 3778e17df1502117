"""Batches come to the device as the task gives them, whichever way they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from charrnn import feeding
from charrnn.config import Config, build_config
from charrnn.data.batch import Batch
from charrnn.data.streams import held_dtype
from charrnn.feeding import ahead, feed
from charrnn.tasks import load_task
from charrnn.tasks.lm import LanguageModel
from charrnn.tasks.task import Holding

CPU = torch.device("cpu")


def config_of(tmp_path: Path, text: str, **data: Any) -> Config:
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    sections = {"data": {"path": str(tmp_path / "text.txt"), "cache": str(tmp_path / "cache"), **data}}
    return build_config({**sections, "train": {"max_steps": 1, "batch_size": 3, "tbptt_window": 16}}, "test")


def same(a: Batch, b: Batch) -> bool:
    tensors = len(a.tensors) == len(b.tensors) and all(map(torch.equal, a.tensors, b.tensors))
    return tensors and (a.continues, a.names, a.chars) == (b.continues, b.names, b.chars)


@pytest.mark.parametrize("symbols", [30, 300, 40_000])
def test_a_held_text_gives_the_same_windows(tmp_path: Path, symbols: int) -> None:
    """… with rare characters left out, from the middle of a pass too, whatever the ids' size."""
    rng = np.random.default_rng(0)
    text = "".join(chr(0x20000 + k) for k in range(symbols) for _ in range(2)) if symbols > 1000 else ""
    text += "".join(chr(0x20000 + k) for k in rng.integers(0, symbols, 2000))
    task = load_task(config_of(tmp_path, text, vocabulary={"min_count": 2}))
    assert isinstance(task, LanguageModel) and isinstance(task, Holding)
    size = {30: 1, 300: 2, 40_000: 4}[symbols]
    assert task.held_bytes() == size * len(task.corpus.split("train")) and held_dtype(task.corpus).itemsize == size
    held = task.hold(CPU)
    assert [*held()] and all(map(same, held(), task.batches("train")))
    passed = task.steps_per_epoch()
    assert len([*held(first=2)]) == passed - 2
    assert all(map(same, held(epoch=3, first=2), task.batches("train", epoch=3, first=2)))
    assert all(batch.inputs.is_contiguous() and batch.targets.is_contiguous() for batch in held())


def test_a_cpu_is_fed_by_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task(config_of(tmp_path, "abcab" * 100))
    monkeypatch.setattr(LanguageModel, "hold", None)
    assert all(map(same, feed(task, CPU)(first=1), task.batches("train", first=1)))


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """What is sent to a GPU that is not there."""
    batches: list[Batch] = []

    class Post:
        def __init__(self, device: torch.device) -> None: ...

        def send(self, batch: Batch) -> Callable[[], Batch]:
            batches.append(batch)
            return lambda: batch

    monkeypatch.setattr(feeding, "Courier", Post)
    return batches


def test_a_gpu_holds_a_text_that_fits_and_is_sent_the_windows_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: list[Batch]
) -> None:
    task = load_task(config_of(tmp_path, "abcab" * 100))
    assert isinstance(task, LanguageModel)
    held_on: list[str] = []

    def hold(self: LanguageModel, device: torch.device) -> Any:
        held_on.append(device.type)

    monkeypatch.setattr(LanguageModel, "hold", hold)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * task.held_bytes(), 1 << 40))
    feed(task, torch.device("cuda"))
    assert held_on == ["cuda"]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * task.held_bytes() - 4, 1 << 40))
    batches = [*feed(task, torch.device("cuda"))(first=1)]
    assert held_on == ["cuda"] and all(map(same, batches, task.batches("train", first=1)))
    assert len(sent) == len(batches) == task.steps_per_epoch() - 1


def test_one_batch_is_on_its_way_while_another_is_used() -> None:
    events: list[str] = []

    def made() -> Iterator[Batch]:
        for number in range(3):
            yield Batch(torch.full((2, 1), number), torch.zeros(2, 1, dtype=torch.int64), None, continues=number > 0)

    def send(batch: Batch) -> Callable[[], Batch]:
        events.append(f"sent {int(batch.inputs[0])}")
        return lambda: batch

    for batch in ahead(made(), send):
        events.append(f"used {int(batch.inputs[0])}")
    assert events == ["sent 0", "sent 1", "used 0", "sent 2", "used 1", "used 2"]
    assert [*ahead(iter(()), send)] == []


def test_a_moved_batch_knows_what_was_read() -> None:
    """To count on a GPU would be to wait for it."""
    ragged = Batch(torch.zeros(5, 2, dtype=torch.int64), torch.zeros(5, 2, dtype=torch.int64), torch.tensor([5, 3]), continues=False)
    frames = Batch(torch.zeros(5, 2, 4), torch.tensor([[1, 2], [3, -1]]), torch.tensor([5, 3]), continues=False)
    for batch, chars in ((ragged, 8), (frames, 3)):
        moved = batch.to(torch.device("meta"))
        assert all(tensor.device.type == "meta" for tensor in moved.tensors)
        assert moved.chars == batch.chars == chars
        assert batch.to(CPU) is batch
