"""The gradients of one step: forward and backward over its windows, the columns of a batch shared out among threads.

One shard, in the calling thread, is the default. With more, each group of columns is a chain of products of its own in a
thread of its own: no thread waits for another inside a product, but each reads the whole of the weights.

Axes: T time, B batch, H hidden_size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor, nn

from charrnn.data.batch import Batch
from charrnn.device import seeded
from charrnn.metrics import Tally
from charrnn.tasks.task import State, Task, carry


def shard_count(device: torch.device, columns: int, wanted: int) -> int:
    """`train.shards`, but no more than there are columns; a GPU takes them all at once."""
    return min(wanted, columns) if device.type == "cpu" else 1


def _prepare_thread() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # a state that fades out would otherwise slow the processor down a hundredfold


class Shards:
    """Contiguous groups of a batch's columns, each with its own carried state and generator and, if there are several, its own thread.

    A batch may have fewer columns than the others, even fewer than there are groups.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        count: int,
        *,
        precision: torch.dtype,
        label_smoothing: float,
        scaler: torch.amp.GradScaler,
        seed: int,
    ) -> None:
        self._task, self._model, self._seed = task, model, seed
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._device = self._parameters[0].device
        self._precision, self._label_smoothing, self._scaler = precision, label_smoothing, scaler
        self._carried: list[State | None] = [None] * count
        self._generators: list[torch.Generator] = []
        self.reseed(0)
        self._pool: ThreadPoolExecutor | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Shards:
        if self._device.type == "cpu":
            torch.set_flush_denormal(True)
            self._stack.callback(torch.set_flush_denormal, False)
        if len(self._carried) > 1:
            # In evaluations too: on a machine with other work, two threads inside small products wait for each other
            # (measured with twice as many busy threads as cores: 25 times slower than one).
            self._stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
            self._pool = self._stack.enter_context(ThreadPoolExecutor(len(self._carried), "shard", _prepare_thread))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def gradients(self, windows: Sequence[Batch]) -> tuple[list[Tensor], Tally, Tensor]:
        """The gradient by each parameter of the loss, and the windows' tally.

        With them what the gradients still have to be multiplied by, a scalar, to be those of the mean over all that the windows ask.
        The windows follow one another; the state is carried through them and on to the next call.
        """
        shards = range(len(self._carried))
        if self._pool is None:
            results = [self._run(k, windows) for k in shards]
        else:
            results = [job.result() for job in [self._pool.submit(self._run, k, windows) for k in shards]]
        tally = sum((found for _, found in results), Tally.zero(self._device))
        gradients = _sum([some for some, _ in results if some])  # in fixed order, so that it is the same in every run
        # Where each was divided by the characters read: the mean is over those that were asked.
        return gradients, tally, self._divisor(windows) / tally.count.clamp(min=1)

    def _run(self, k: int, windows: Sequence[Batch]) -> tuple[list[Tensor], Tally]:
        """The group's part of the gradients; [] where no window has columns for it."""
        # autograd.grad and not backward: threads would add into the same .grad. Autocast is entered here because it is a thread's own.
        gradients: list[Tensor] = []
        tally = Tally.zero(self._device)
        for window in windows:
            part = self._part(window, k)
            if part.columns == 0:
                continue
            with torch.autocast(self._device.type, self._precision, enabled=self._precision != torch.float32):
                loss, found, self._carried[k] = self._task.loss(
                    self._model, part, carry(self._carried[k], part), generator=self._generators[k], label_smoothing=self._label_smoothing
                )
            if self._scaler.is_enabled():
                loss = self._scaler.scale(loss / self._divisor(windows))
            new = torch.autograd.grad(loss, self._parameters)
            gradients = _sum([gradients, new]) if gradients else _own(new)
            tally = tally + found
        return gradients, tally

    def _divisor(self, windows: Sequence[Batch]) -> int:
        """What losses are divided by before they are differentiated: the scale of fp16 has to meet numbers of order one."""
        return sum(window.chars for window in windows) if self._scaler.is_enabled() else 1

    def _part(self, batch: Batch, k: int) -> Batch:
        if len(self._carried) == 1:
            return batch
        return batch.part(self._columns(batch.columns, k))

    def _columns(self, count: int, k: int) -> slice:
        """The group's own of so many columns."""
        return slice(count * k // len(self._carried), count * (k + 1) // len(self._carried))

    def reseed(self, step: int) -> None:
        """Fresh generators, from (seed, rank, shard, step)."""
        self._generators = [seeded(self._device, self._seed, 0, k, step) for k in range(len(self._carried))]

    def generator_states(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._generators]

    def load_generator_states(self, states: Sequence[Tensor]) -> str:
        """What has changed, if it is such that the states cannot be taken up; then nothing is."""
        if len(states) != len(self._generators):
            return "with another number of shards"
        if any(state.numel() != generator.get_state().numel() for generator, state in zip(self._generators, states)):
            return "on another kind of device"
        for generator, state in zip(self._generators, states):
            generator.set_state(state)
        return ""

    def carried(self) -> State | None:
        """The state after the last window, joined over the columns: a layer (h,) or (h, c), each (B, H)."""
        parts = [state for state in self._carried if state is not None]
        if len(parts) < len(self._carried):
            return None
        return tuple(tuple(torch.cat([s.detach() for s in same]) for same in zip(*layers)) for layers in zip(*parts))

    def load_carried(self, state: State | None) -> None:
        """Continue from a joined state; None: from the beginning of a text."""
        for k in range(len(self._carried)):
            if state is None:
                self._carried[k] = None
                continue
            self._carried[k] = tuple(tuple(s[self._columns(s.size(0), k)].to(self._device) for s in layer) for layer in state)


def _own(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Gradients that can be changed in place: two biases that are added get one tensor from autograd, and would be scaled twice."""
    seen: set[int] = set()
    owned = []
    for gradient in gradients:
        if gradient.is_sparse:
            owned.append(gradient.coalesce())
            continue
        gradient = gradient.clone() if gradient.data_ptr() in seen else gradient.contiguous()
        seen.add(gradient.data_ptr())
        owned.append(gradient)
    return owned


def _sum(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Of the same gradients, several times; the first part is used up."""
    total = list(parts[0])
    dense = [k for k, gradient in enumerate(total) if not gradient.is_sparse]
    for more in parts[1:]:
        torch._foreach_add_([total[k] for k in dense], [more[k] for k in dense])
        for k, gradient in enumerate(more):
            if gradient.is_sparse:
                total[k] = (total[k] + gradient).coalesce()
    return total
