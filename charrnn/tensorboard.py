"""The curves and samples of a run as TensorBoard shows them; the reporter behind it is told all the same."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import IO, Any

from charrnn.errors import UserError
from charrnn.run_files import EVENTS
from charrnn.training import Outcome, Reporter, StepReport


class TensorBoard:
    """A Reporter that writes what metrics.jsonl has, under train/ and val/, and what the model writes, into `events.out.tfevents.…`.

    Each process writes a file of its own. What an earlier one has told of steps behind the one that is resumed at, TensorBoard leaves out.
    Raises UserError where TensorBoard is not installed. A file that cannot be written is a warning, once.
    """

    def __init__(self, run: Path, inner: Reporter) -> None:
        try:
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            raise UserError("--tensorboard needs tensorboard, which is not installed; pip install 'charrnn[tensorboard]'") from None
        self.folder = run / EVENTS
        self._inner, self._record_writer = inner, RecordWriter
        self._file: IO[bytes] | None = None
        self._broken = False
        self._step = 0

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def note(self, text: str) -> None:
        self._inner.note(text)

    def warn(self, text: str) -> None:
        self._inner.warn(text)

    def encoding(self, done: int, total: int) -> None:
        self._inner.encoding(done, total)

    def stepped(self, step: int, progress: float) -> None:
        self._step = step
        if self._file is None and not self._broken:
            self._begin()
        self._inner.stepped(step, progress)

    def step(self, report: StepReport) -> None:
        self._scalars({f"train/{name}": value for name, value in report.line().items() if name != "step"})
        self._inner.step(report)

    def evaluated(self, metrics: dict[str, float], sample: str, is_best: bool) -> None:
        self._scalars({f"val/{name.removeprefix('val_')}": value for name, value in metrics.items()})
        self._text("sample", "\n".join(f"    {line}" for line in sample.split("\n")))  # verbatim: it is shown as markdown
        self._inner.evaluated(metrics, sample, is_best)

    def done(self, outcome: Outcome) -> None:
        self.close()
        self._inner.done(outcome)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        name = f"events.out.tfevents.{int(time.time())}.{platform.node()}.{os.getpid()}"
        try:
            self.folder.mkdir(exist_ok=True)
            # Unbuffered: what has been told is in the file, and a full disk is told of here.
            self._file = open(self.folder / name, "ab", buffering=0)
        except OSError as error:
            self._give_up(error)
            return
        self._write(file_version="brain.Event:2")
        if self._step:
            self._write(session_log=SessionLog(status=SessionLog.START), step=self._step + 1)

    def _scalars(self, values: dict[str, Any]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._write(summary=Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]))

    def _text(self, tag: str, text: str) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING

        kind = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode(errors="replace")])
        self._write(summary=Summary(value=[Summary.Value(tag=tag, metadata=kind, tensor=tensor)]))

    def _write(self, *, step: int | None = None, **what: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        if self._file is None:
            return
        event = Event(wall_time=time.time(), step=self._step if step is None else step, **what)
        try:
            self._record_writer(self._file).write(event.SerializeToString())
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._broken = True
        self._inner.warn(f"{self.folder}: cannot be written: {error.strerror or error}; training goes on without curves for TensorBoard")
        self.close()
