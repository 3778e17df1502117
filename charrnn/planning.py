"""What a run would be, in numbers, before its first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from charrnn.cuda_graph import records
from charrnn.data.batch import IGNORED, Batch
from charrnn.data.corpus import split_configs
from charrnn.data.files import find_files
from charrnn.device import free_memory, resolve_precision
from charrnn.errors import DataError, counted
from charrnn.gradients import shard_count
from charrnn.models import Architecture, count_parameters
from charrnn.ops.backends import Request, explain
from charrnn.tasks.task import Task

OPTIMIZER_COPIES = {"adamw": 2, "adam": 2, "rmsprop": 1, "sgd": 1}
MIB = 1 << 20
LOOKED_AT = 8  # batches of the first, among which the widest is that of a full size


@dataclass(frozen=True)
class Plan:
    parameters: int
    characters: int  # to train on
    characters_per_parameter: float
    files: int  # that were read
    left_out: int  # files that are no text
    documents: int  # 0 for a stream
    memory_bytes: int  # an estimate, of tensors alone
    vocabulary_size: int
    steps_per_epoch: int  # batches in one pass
    batches: str  # what they are called
    device: str
    precision: str
    backend: str  # that runs the recurrence, and why not the one that would be preferred
    shards: int  # threads that share the columns of a batch
    notes: list[str]
    warnings: list[str]

    def summary(self) -> str:
        source = f"{counted(self.documents, 'document')} in " if self.documents else ""
        source += counted(self.files, "file") + (f", {self.left_out:,} left out as no text" if self.left_out else "")
        return (
            f"{self.parameters:,} parameters, {self.characters:,} characters to train on "
            f"({self.characters_per_parameter:.2g} per parameter; {source}), vocabulary {self.vocabulary_size:,}, "
            f"about {max(1, round(self.memory_bytes / MIB)):,} MiB, {self.device} in {self.precision}, backend {self.backend}"
        )


def describe(task: Task, model: Architecture, device: torch.device) -> Plan:
    """The plan of a task with its model on a device. Raises UserError, or UnsupportedBackend, where it cannot do what it is asked to."""
    config, corpus = task.config, task.corpus
    batches = list(islice(task.batches("train"), LOOKED_AT))
    parameters, characters = count_parameters(model), len(corpus.split("train"))
    per_parameter = characters / parameters
    precision = resolve_precision(config.train.precision, device)
    records(config, device)  # which says where it is asked for and cannot be
    request = Request(config.model.cell, device.type, autocast=None if precision == torch.float32 else precision)
    warnings = []
    if per_parameter < 1 and not batches[0].inputs.is_floating_point():  # what is read is more than what is said of it
        warnings.append(
            f"the model is far too large for the text: {parameters:,} parameters for {characters:,} characters, "
            "so it will learn the text by heart; lower model.hidden_size, raise model.dropout, or add text"
        )
    memory, free = _memory(task, model, parameters, batches), free_memory(device)
    if free is not None and memory > free:
        warnings.append(
            f"the run needs about {memory / MIB:,.0f} MiB and {free / MIB:,.0f} MiB are free; lower train.batch_size, train.tbptt_window "
            "or model.hidden_size, or end other programs; what does not fit is read in pieces, which takes longer"
        )
    return Plan(
        parameters=parameters,
        characters=characters,
        characters_per_parameter=per_parameter,
        files=corpus.files,
        left_out=sum(len(find_files(data, key)) for key, data in split_configs(config.data).items()) - corpus.files,
        documents=corpus.documents,
        memory_bytes=memory,
        vocabulary_size=len(task.vocabulary),
        steps_per_epoch=task.steps_per_epoch(),
        batches="windows" if config.is_windowed else "batches",
        device=str(device),
        precision=str(precision).removeprefix("torch."),
        backend=explain(config.model.backend, request),
        shards=shard_count(device, max(batch.columns for batch in batches), config.train.shards),
        notes=[*task.notes(), *_without_effect(task)],
        warnings=warnings,
    )


def can_be_scored(task: Task) -> bool:
    """Whether the val split asks for anything at all."""
    try:
        return any(bool((batch.targets != IGNORED).any()) for batch in task.batches("val"))
    except DataError:  # what a task says of a split that has nothing to predict
        return False


def _without_effect(task: Task) -> list[str]:
    train = task.config.train
    named = ["train.patience"] if train.patience else []
    named += ["train.schedule: plateau"] if train.schedule == "plateau" else []
    named += ["train.best_by"] if train.best_by else []
    if not named or can_be_scored(task):
        return []
    have = "have" if len(named) > 1 else "has"
    return [f"{' and '.join(named)} {have} no effect: no value is measured without a val split; raise data.val_fraction or add text"]


def _memory(task: Task, model: Architecture, parameters: int, batches: Sequence[Batch]) -> int:
    """Bytes: weights, gradients, the optimizer's copies, the average, the last good state; and what backward needs of the widest batch."""
    train = task.config.train
    kept = 1 + OPTIMIZER_COPIES[train.optimizer] + (1 if train.ema_decay else 0)
    weights = parameters * (2 * kept + 1)  # the last good state doubles what is kept; the gradients are not
    asked = [int((batch.targets != IGNORED).sum()) for batch in batches]
    return 4 * (weights + max(model.numbers_kept(b.inputs.shape, b.targets.shape, n) for b, n in zip(batches, asked)))
