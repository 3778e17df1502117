"""How the batches of training come to the device: from a text that lies there, or copied ahead of their use."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from charrnn.data.batch import Batch
from charrnn.device import free_memory
from charrnn.tasks.task import Batches, Holding, Task

SHARE = 0.25  # of the memory that is free on a GPU: what the text may take there at most


def feed(task: Task, device: torch.device) -> Batches:
    """`task.batches` of split train. On a GPU they lie there, and nobody has waited for them."""

    def batches(*, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        return task.batches("train", epoch=epoch, first=first)

    if device.type != "cuda":
        return batches
    if isinstance(task, Holding) and task.held_bytes() <= SHARE * (free_memory(device) or 0):
        return task.hold(device)
    courier = Courier(device)
    return lambda *, epoch=0, first=0: ahead(batches(epoch=epoch, first=first), courier.send)


def ahead(batches: Iterator[Batch], send: Callable[[Batch], Callable[[], Batch]]) -> Iterator[Batch]:
    """Batches as they arrive, each sent off before the one in front of it is used. `send` returns what takes delivery."""
    coming: Callable[[], Batch] | None = None
    for batch in batches:
        due, coming = coming, send(batch)
        if due is not None:
            yield due()
    if coming is not None:
        yield coming()


class Courier:
    """Copies to a GPU out of pinned memory, on a stream of its own: neither the processor waits for them nor what the GPU is at."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, batch: Batch) -> Callable[[], Batch]:
        with torch.cuda.stream(self._stream):
            sent = batch.moved(lambda tensor: tensor.pin_memory().to(self._device, non_blocking=True))
            arrived = self._stream.record_event()

        def delivery() -> Batch:
            user = torch.cuda.current_stream(self._device)
            user.wait_event(arrived)
            for tensor in sent.tensors:
                tensor.record_stream(user)  # or the memory would be given to the next batch while it is still read
            return sent

        return delivery
