"""The processes that train one model together: who they are, what one does for all, and sums over all of them.

`torchrun` starts them and tells each its place in the environment; PyTorch's process group carries what they say to each other,
over NCCL between GPUs and gloo between CPUs. A run that nobody has told of others is alone, and the same code runs in it.

What is decided from a clock or by a signal has to be decided by all in the same step, or some would wait for sums that the
others never make: `agree` is asked once a step.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from charrnn.atomic import WriteError
from charrnn.errors import UserError

T = TypeVar("T")
GRACE_SECONDS = 5.0
PATIENCE = timedelta(hours=2)  # for the others: the first may encode a large text while they wait
TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # by torchrun, or by whoever starts the processes in its way
CALM, INTERRUPTED, TERMINATED = 0, 1, 2  # what `agree` is told: how urgently a process wants to stop


def share(count: int, part: int, parts: int) -> slice:
    """What is the `part`th's of so many columns: contiguous, and as many as any other's or one more."""
    return slice(count * part // parts, count * (part + 1) // parts)


@dataclass(frozen=True)
class Ranks:
    """One process among those of a run: the `rank`th of `size`."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of this machine: the number of its GPU
    restarts: int = 0  # that torchrun has made of all of them

    @property
    def first(self) -> bool:
        """Whether it is the one that writes files and tells a person."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        return self.size > 1

    def on_first(self, action: Callable[[], T]) -> T | None:
        """Have the first process do it; what that returns, to the first alone. All wait for its end.

        What it raises is raised in the others too: a UserError as it is, marked as told, and SystemExit in the place of a bug, whose
        traceback is the first's.
        """
        if not self.several:
            return action()
        outcome: T | None = None
        error: Exception | None = None
        if self.first:
            try:
                outcome = action()
            except Exception as raised:
                error = raised
        kind = "write" if isinstance(error, WriteError) else "user" if isinstance(error, UserError) else "bug" if error else ""
        kind, message = self.from_first((kind, str(error) if error else ""))
        if error is not None:
            raise error
        if kind == "bug":
            raise leaving(1)
        if kind:
            raise _ToldWriteError(message) if kind == "write" else _ToldError(message)
        return outcome

    def first_then_all(self, action: Callable[[], T]) -> T:
        """Have the first process do it and then the others, who find in the cache what it has left there."""
        if not self.several:
            return action()
        done = self.on_first(lambda: (action(),))
        return done[0] if done is not None else action()

    def from_first(self, value: T) -> T:
        """What the first process has for `value`."""
        if not self.several:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Each process's `value`, by rank, its tensors on the CPU."""
        if not self.several:
            return [value]
        found: list[T | None] = [None] * self.size
        dist.all_gather_object(found, on_cpu(value))
        return found  # type: ignore[return-value]

    def sum_(self, numbers: Tensor) -> Tensor:
        """Numbers, in place, become their sums over all processes, on whichever device they are."""
        if self.several:
            dist.all_reduce(numbers)
        return numbers

    def agree(self, wish: int, seconds: float) -> tuple[int, float]:
        """The most urgent wish of any process, and the first one's clock."""
        if not self.several:
            return wish, seconds
        told = torch.tensor([float(wish), seconds if self.first else -1.0], dtype=torch.float64)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return int(told[0]), float(told[1])

    def part(self, count: int) -> slice:
        """Its own of so many columns. With more processes than columns some have none."""
        return share(count, self.rank, self.size)


ALONE = Ranks()


class _ToldError(UserError):
    """What the first process has told a person already."""


class _ToldWriteError(WriteError):
    """Likewise, of a file."""


def leaving(code: int) -> SystemExit:
    """The end of a process whose first one has failed, after some time: torchrun ends all of them as soon as one has ended, and the
    first shall be the one to say why."""
    time.sleep(GRACE_SECONDS)
    return SystemExit(code)


def already_told(error: UserError) -> bool:
    return isinstance(error, (_ToldError, _ToldWriteError))


def find_ranks(environment: Mapping[str, str] = os.environ) -> Ranks:
    """This process's place, from what torchrun has told it. Raises UserError where that cannot be."""
    if any(not environment.get(name) for name in TOLD):
        return ALONE
    names = {"rank": "RANK", "size": "WORLD_SIZE", "local_rank": "LOCAL_RANK", "restarts": "TORCHELASTIC_RESTART_COUNT"}
    numbers: dict[str, int] = {}
    for key, name in names.items():
        text = environment.get(name, "0")
        if not (text.isascii() and text.isdigit()):
            raise UserError(
                f"{name}={text!r} in the environment: expected a number, as torchrun sets it; start it with torchrun, or unset it"
            )
        numbers[key] = int(text)
    ranks = Ranks(**numbers)
    if not ranks.rank < ranks.size:
        fact = f"RANK={ranks.rank} and WORLD_SIZE={ranks.size} in the environment"
        raise UserError(f"{fact}: expected a rank below the size; start it with torchrun, or unset both")
    return ranks


@contextlib.contextmanager
def joined(device: torch.device, ranks: Ranks) -> Iterator[None]:
    """Inside, the processes can hear each other. Raises UserError where they do not come together."""
    if not ranks.several:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", ranks.rank, ranks.size, timeout=PATIENCE)))  # type: ignore[attr-defined]
        # torchrun keeps one store through its restarts, and in it the addresses of processes that have gone.
        store = dist.PrefixStore(f"charrnn-{ranks.restarts}", store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.size, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"process {ranks.rank} of {ranks.size} did not find the others at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} "
            f"({reason}); check --master-addr and --master-port, or --rdzv-endpoint, of torchrun"
        ) from None
    try:
        yield
    finally:
        dist.destroy_process_group()


def on_cpu(value: T) -> T:
    """With its tensors on the CPU: of containers and dataclasses all the way down."""
    found: Any = value
    if isinstance(found, Tensor):
        found = found.detach().cpu()
    elif is_dataclass(found) and not isinstance(found, type):
        found = replace(found, **{part.name: on_cpu(getattr(found, part.name)) for part in fields(found) if part.init})
    elif isinstance(found, dict):
        found = {key: on_cpu(one) for key, one in found.items()}
    elif isinstance(found, (list, tuple)):
        parts = [on_cpu(one) for one in found]
        found = type(found)(*parts) if hasattr(found, "_fields") else type(found)(parts)  # a NamedTuple takes them one by one
    result: T = found
    return result
