"""TensorBoard's own reader finds what metrics.jsonl has."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from charrnn.errors import UserError
from charrnn.tensorboard import TensorBoard
from charrnn.training import StepReport, train
from tests import test_training
from tests.test_training import Listener, Settings

settings, text = test_training.settings, test_training.text  # a small run, and what it reads


def events(run: Path) -> Iterator[Any]:
    """In the order in which they were written, whichever process did."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    for path in sorted((run / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        yield from EventFileLoader(str(path)).Load()


def scalars(run: Path) -> dict[str, dict[int, float]]:
    """By tag and step, as they are shown: without what lies behind a step at which another process went on."""
    from tensorboard.util.tensor_util import make_ndarray

    found: dict[str, dict[int, float]] = {}
    for event in events(run):
        if event.HasField("session_log"):
            found = {tag: {step: value for step, value in values.items() if step < event.step} for tag, values in found.items()}
        for value in event.summary.value:
            if value.tag != "sample":
                found.setdefault(value.tag, {})[event.step] = float(make_ndarray(value.tensor))
    return found


def written(run: Path) -> dict[str, dict[int, float]]:
    """What metrics.jsonl has, under the same names."""
    found: dict[str, dict[int, float]] = {}
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        split = "val" if "val_accuracy" in line else "train"
        for key, value in line.items():
            if key != "step" and (split == "train" or key.startswith("val_")):
                found.setdefault(f"{split}/{key.removeprefix('val_')}", {})[line["step"]] = value
    return found


def test_it_has_what_the_journal_has_also_after_a_kill(settings: Settings, tmp_path: Path) -> None:
    run = tmp_path / "run"

    class Killed(BaseException):
        """As kill -9: nothing is saved any more."""

    def at(report: StepReport) -> None:
        if report.step == 14:
            raise Killed

    with pytest.raises(Killed), TensorBoard(run, Listener(at)) as reporter:
        train(settings(), reporter=reporter)
    assert max(scalars(run)["train/accuracy"]) == 14
    listener = Listener()
    outcome = train(settings(), resume=True, reporter=TensorBoard(run, listener))
    assert listener.outcomes == [outcome] and listener.stepped_to[0][0] == 10
    shown, told = scalars(run), written(run)
    assert shown.keys() == told.keys()
    for tag, values in told.items():
        assert shown[tag] == pytest.approx(values, rel=1e-6), tag
    samples = [event.summary.value[0] for event in events(run) if event.summary.value and event.summary.value[0].tag == "sample"]
    assert {sample.metadata.plugin_data.plugin_name for sample in samples} == {"text"}
    last = samples[-1].tensor.string_val[0].decode()
    assert [line.removeprefix("    ") for line in last.split("\n")] == listener.evaluations[-1][1].split("\n")


def test_a_folder_that_cannot_be_written_is_a_warning_once(settings: Settings, tmp_path: Path) -> None:
    listener = Listener()
    (tmp_path / "run").mkdir()
    reporter = TensorBoard(tmp_path / "run", listener)
    reporter.folder = Path("/dev/full/tensorboard")
    assert train(settings(), reporter=reporter).status == "finished"
    (warning,) = listener.warnings
    assert warning.endswith("/tensorboard: cannot be written: Not a directory; training goes on without curves for TensorBoard")


def test_a_full_disk_is_a_warning_once(settings: Settings, tmp_path: Path) -> None:
    listener = Listener()
    reporter = TensorBoard(tmp_path / "run", listener)
    reporter._file = open("/dev/full", "wb", buffering=0)
    assert train(settings(), reporter=reporter).status == "finished"
    (warning,) = listener.warnings
    assert "/tensorboard: cannot be written: No space left on device; training goes on" in warning


def test_without_it_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    with pytest.raises(UserError, match=r"^--tensorboard needs tensorboard, which is not installed; pip install 'charrnn\[tensorboard\]'$"):
        TensorBoard(tmp_path, Listener())
