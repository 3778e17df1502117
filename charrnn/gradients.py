"""The gradients of one step: forward and backward over its windows, the columns of a batch shared out among processes and threads.

One group of columns, in the calling thread, is the default. With more threads, each group is a chain of products of its own in a
thread of its own: no thread waits for another inside a product, but each reads the whole of the weights. With more processes, each
has a group, and PyTorch's DistributedDataParallel sums their gradients while they are still being computed.

A group whose columns do not fit in memory together is halved, and the halves follow one another: the same gradient, in more time.

Axes: T time, B batch, H hidden_size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from charrnn.data.batch import Batch
from charrnn.device import is_out_of_memory, seeded
from charrnn.distributed import ALONE, Ranks, share
from charrnn.errors import UserError, short
from charrnn.metrics import Tally
from charrnn.tasks.task import State, Task, carry, each


def shard_count(device: torch.device, columns: int, wanted: int) -> int:
    """`train.shards`, but no more than there are columns; a GPU takes them all at once."""
    return min(wanted, columns) if device.type == "cpu" else 1


def _prepare_thread() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # a state that fades out would otherwise slow the processor down a hundredfold


class Carried(NamedTuple):
    """What the groups of a process take from one step to the next."""

    generators: list[Tensor]  # the state of each group's
    state: State | None  # after the last window, joined over the columns: a layer (h,) or (h, c), each (B, H)


class _Loss(nn.Module):
    """A task's loss as a module, for DistributedDataParallel, which watches what goes through one."""

    def __init__(self, task: Task, model: nn.Module, label_smoothing: float) -> None:
        super().__init__()
        self.model, self._task, self._label_smoothing = model, task, label_smoothing

    def forward(self, part: Batch, state: State | None, generator: torch.Generator) -> tuple[Tensor, Tally, State]:
        return self._task.loss(self.model, part, state, generator=generator, label_smoothing=self._label_smoothing)


class Shards:
    """Contiguous groups of a batch's columns, each with its own carried state and generator and, if there are several, its own thread.

    A batch may have fewer columns than the others, even fewer than there are groups. `told` hears of a group that is halved.
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
        ranks: Ranks = ALONE,
        told: Callable[[str], None] = lambda text: None,
    ) -> None:
        if ranks.several and count > 1:
            raise ValueError("one group to a process: with several processes, threads have none of their own")
        self._seed, self._ranks, self._told = seed, ranks, told
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._device = self._parameters[0].device
        self._precision, self._scaler = precision, scaler
        self._loss: nn.Module = _Loss(task, model, label_smoothing)
        self._parallel = _in_parallel(self._loss, self._device) if ranks.several else None
        self._carried: list[State | None] = [None] * count
        self._pieces = [1] * count  # that each group's columns are read in
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
        """The gradient by each parameter of the loss, and the windows' tally, both of all processes.

        With them what the gradients still have to be multiplied by, a scalar, to be those of the mean over all that the windows ask.
        The windows follow one another; the state is carried through them and on to the next call. Raises UserError where one
        column alone does not fit in memory.
        """
        shards = range(len(self._carried))
        if self._pool is None:
            results = [self._fitting(k, windows) for k in shards]
        else:
            results = [job.result() for job in [self._pool.submit(self._fitting, k, windows) for k in shards]]
        tally = self._ranks_tally(sum((found for _, found in results), Tally.zero(self._device)))
        gradients = _sum([some for some, _ in results if some])  # in fixed order, so that it is the same in every run
        # Where each was divided by the characters read: the mean is over those that were asked. DistributedDataParallel gives the
        # mean over the processes, and the sum is wanted.
        return gradients, tally, self._ranks.size * self._divisor(windows) / tally.count.clamp(min=1)

    def _ranks_tally(self, own: Tally) -> Tally:
        if not self._ranks.several:
            return own
        sums = self._ranks.sum_(torch.stack([own.nats, own.count.to(own.nats.dtype), own.correct.to(own.nats.dtype)]))
        return Tally.of((sums[0], sums[1].round(), sums[2].round()), self._device)

    def _fitting(self, k: int, windows: Sequence[Batch]) -> tuple[list[Tensor], Tally]:
        """`_run`, in as many pieces as fit in memory."""
        while True:
            carried, drawn = self._carried[k], self._generators[k].get_state() if self._device.type == "cpu" else None
            try:
                return self._run(k, windows)
            except Exception as error:
                # In several processes the others are waiting for this one's sums, in the middle of theirs.
                if self._ranks.several or not is_out_of_memory(error):
                    raise
                reason = str(error)
            # Outside of `except`, whose traceback keeps all that was computed.
            columns = max(self._part(window, k).columns for window in windows)
            if self._pieces[k] >= columns:
                raise UserError(_too_long(windows, reason))
            self._carried[k] = carried
            if drawn is not None:
                self._generators[k].set_state(drawn)
            else:
                torch.cuda.empty_cache()
            self._pieces[k] = min(columns, 2 * self._pieces[k])
            self._told(
                f"out of memory; from here on the {columns} columns of a step are read in {self._pieces[k]} pieces, one after the other: "
                "the step is the same and takes longer (train.batch_size sets the columns)"
            )

    def _run(self, k: int, windows: Sequence[Batch]) -> tuple[list[Tensor], Tally]:
        """The group's part of the gradients; [] where no window has columns for it."""
        # autograd.grad and not backward: threads would add into the same .grad. Autocast is entered here because it is a thread's own.
        gradients: list[Tensor] = []
        tally = Tally.zero(self._device)
        for at, window in enumerate(windows):
            part, counts = self._part(window, k), 1.0
            if part.columns == 0 and self._parallel is None:
                continue
            if part.columns == 0:  # the other processes wait for a gradient of this one too
                part, counts = window.part(slice(0, 1)), 0.0
            pieces = _pieces(part, self._pieces[k])
            before = [carry(state, piece) for state, piece in zip(_states(self._carried[k], pieces, part), (piece for _, piece in pieces))]
            after: list[State] = []
            for number, ((_, piece), state) in enumerate(zip(pieces, before)):
                last = at == len(windows) - 1 and number == len(pieces) - 1
                # What goes forward outside of no_sync is summed over the processes when it goes backward.
                with self._parallel.no_sync() if self._parallel and not last else contextlib.nullcontext():
                    with torch.autocast(self._device.type, self._precision, enabled=self._precision != torch.float32):
                        loss, found, state = (self._parallel or self._loss)(piece, state, self._generators[k])
                    if counts == 0:
                        loss, found = loss * 0, Tally.zero(self._device)
                    if self._scaler.is_enabled():
                        loss = self._scaler.scale(loss / self._divisor(windows))
                    new = self._differentiated(loss, last)
                if new:
                    gradients = _sum([gradients, new]) if gradients else _own(new)
                tally = tally + found
                after.append(each(state, Tensor.detach) if len(pieces) > 1 else state)
            if counts:
                self._carried[k] = _joined(after)
        return gradients, tally

    def _differentiated(self, loss: Tensor, last: bool) -> Sequence[Tensor]:
        """The gradients of a loss; in several processes those of all losses since the last time, once all are there, and [] before."""
        if self._parallel is None:
            return torch.autograd.grad(loss, self._parameters)
        loss.backward()  # type: ignore[no-untyped-call]
        if not last:
            return []
        gradients = []
        for parameter in self._parameters:
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None
            if gradient.is_sparse:  # of a table, which is left to us, for NCCL sums none: gloo does
                gradient = self._ranks.sum_(gradient.coalesce().cpu()).to(self._device) / self._ranks.size
            gradients.append(gradient)
        return gradients

    def _divisor(self, windows: Sequence[Batch]) -> int:
        """What losses are divided by before they are differentiated: the scale of fp16 has to meet numbers of order one."""
        return sum(window.chars for window in windows) if self._scaler.is_enabled() else 1

    def _part(self, batch: Batch, k: int) -> Batch:
        if self.groups == 1:
            return batch
        return batch.part(self._columns(batch.columns, k))

    @property
    def groups(self) -> int:
        """Of all processes together."""
        return len(self._carried) * self._ranks.size

    def _columns(self, count: int, k: int) -> slice:
        """The group's own of so many columns."""
        return share(count, self._ranks.rank * len(self._carried) + k, self.groups)

    def reseed(self, step: int) -> None:
        """Fresh generators, from (seed, group, step)."""
        first = self._ranks.rank * len(self._carried)
        self._generators = [seeded(self._device, self._seed, 0, first + k, step) for k in range(len(self._carried))]

    def carried(self) -> Carried:
        """Of this process, as `load` takes it."""
        parts = [state for state in self._carried if state is not None]
        state = _joined(parts) if len(parts) == len(self._carried) else None
        if state is not None:
            state = each(state, Tensor.detach)
        return Carried([generator.get_state() for generator in self._generators], state)

    @property
    def state(self) -> State | None:
        """What one group alone carries, as it lies in memory; another may be put in its place."""
        (state,) = self._carried
        return state

    @state.setter
    def state(self, state: State | None) -> None:
        self._carried = [state]

    @property
    def generator(self) -> torch.Generator:
        """That of one group alone; another may be put in its place."""
        (generator,) = self._generators
        return generator

    @generator.setter
    def generator(self, generator: torch.Generator) -> None:
        self._generators = [generator]

    def load(self, carried: Carried) -> str:
        """Go on from what `carried` gave, state None: from the beginning of a text.

        What has changed, if it is such that the generators' states cannot be taken up; then they are left as they are.
        """
        columns = carried.state[0][0].size(0) if carried.state else 0
        for k in range(len(self._carried)):
            if carried.state is None:
                self._carried[k] = None
                continue
            own = _columns_of(carried.state, share(columns, k, len(self._carried)))
            self._carried[k] = each(own, lambda tensor: tensor.to(self._device))
        states = carried.generators
        if len(states) != len(self._generators):
            return "with another number of shards or processes"
        if any(state.numel() != generator.get_state().numel() for generator, state in zip(self._generators, states)):
            return "on another kind of device"
        for generator, state in zip(self._generators, states):
            generator.set_state(state)
        return ""

    def together(self, own: Carried) -> Carried:
        """Of all processes, in the order of their columns. To be asked in all of them."""
        if not self._ranks.several:
            return own
        parts = self._ranks.gather(own)
        states = [part.state for part in parts if part.state is not None]
        return Carried([one for part in parts for one in part.generators], _joined(states) if len(states) == len(parts) else None)

    def own(self, all_: Carried) -> Carried:
        """This process's part of what `together` gave, in this run or in one of another number of processes."""
        if not self._ranks.several:
            return all_
        state, count = all_.state, len(self._carried)
        if state:
            columns = self._ranks.part(state[0][0].size(0))
            state = _columns_of(state, columns)
        first = self._ranks.rank * count
        generators = all_.generators[first : first + count] if len(all_.generators) == self.groups else []
        return Carried(generators, state)


def _in_parallel(loss: nn.Module, device: torch.device) -> DistributedDataParallel:
    tables = [f"{name}.weight" for name, module in loss.named_modules() if isinstance(module, nn.Embedding) and module.sparse]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(loss, tables)  # type: ignore[no-untyped-call]
    return DistributedDataParallel(loss, device_ids=[device.index] if device.type == "cuda" else None, forward_sync_buffers=False)


def _pieces(part: Batch, count: int) -> list[tuple[slice, Batch]]:
    """Contiguous columns of a part, one after the other."""
    columns = part.columns
    if count == 1 or columns == 1:
        return [(slice(0, columns), part)]
    return [(own, part.part(own)) for own in (share(columns, k, count) for k in range(count)) if own.stop > own.start]


def _states(state: State | None, pieces: Sequence[tuple[slice, Batch]], part: Batch) -> list[State | None]:
    """What is carried into each piece."""
    if len(pieces) == 1 or not state or not part.continues:
        return [state] * len(pieces)
    return [_columns_of(state, columns) for columns, _ in pieces]


def _columns_of(state: State, columns: slice) -> State:
    return each(state, lambda tensor: tensor[columns])


def _joined(states: Sequence[State]) -> State:
    """Over the columns."""
    if len(states) == 1:
        return states[0]
    return tuple(tuple(torch.cat(same) for same in zip(*layers)) for layers in zip(*states))


def _too_long(windows: Sequence[Batch], reason: str) -> str:
    steps, name = 0, ""
    for window in windows:
        lengths = [window.inputs.size(0)] * window.columns if window.lengths is None else window.lengths.tolist()
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        if lengths[longest] > steps:
            steps, name = lengths[longest], window.names[longest] if longest < len(window.names) else ""
    which = f" ({short(name)})" if name else ""
    first = (reason.splitlines() or ["out of memory"])[0][:200]
    return (
        f"out of memory with one column alone, of {steps:,} steps{which}: {first}; "
        "lower train.tbptt_window, data.example_length or model.hidden_size, or leave that example out"
    )


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
