"""Which device and which number format a run uses, from what the configuration asks and what the machine has."""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from charrnn.config import DEVICE, EXPECTED
from charrnn.errors import UserError, did_you_mean, says_out_of_memory

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

DEVICES = ("auto", "cpu", "cuda", "cuda:0", "mps")  # to guess what was meant

# Of malloc.h in glibc.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT = 1 << 30  # bytes
MMAP_LIMIT = 32 << 20  # the highest mmap threshold that an older glibc takes


def keep_freed_memory() -> bool:
    """Have the process keep the memory that tensors give back. False where not all of that could be set, which costs time alone.

    A training step frees and asks again for the same few blocks of megabytes. glibc returns blocks of that size to the
    kernel, which hands them out again page by page, zeroed: a third of the processor time of a step was spent there.
    Larger blocks than the threshold still go back: above 1 GiB, in an older glibc above 32 MiB. Other systems, and C
    libraries without mallopt, are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    mapped = any(mallopt(M_MMAP_THRESHOLD, size) for size in (KEPT, MMAP_LIMIT))
    trimmed = mallopt(M_TRIM_THRESHOLD, KEPT)
    return bool(mapped and trimmed)


def resolve_device(name: str) -> torch.device:
    """auto | cpu | cuda | cuda:N | mps. Raises UserError for another name, or where the machine has no such device."""
    if not re.fullmatch(DEVICE, name):
        hint = did_you_mean({"gpu": "cuda"}.get(name.lower(), name), DEVICES)
        raise UserError(f"device {name!r}: expected {EXPECTED['device']}{hint}")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise UserError(f"device {name!r}: PyTorch sees no CUDA GPU here; set device: auto or cpu, or install a CUDA build of torch")
        number = int(name.partition(":")[2] or 0)
        if number >= torch.cuda.device_count():
            raise UserError(f"device {name!r}: there are {torch.cuda.device_count()} CUDA GPUs, numbered from 0; set a lower number")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("device 'mps': PyTorch sees no Apple GPU here; set device: auto or cpu")
    return torch.device(name)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the machine, or its GPU, has no memory left for what was asked."""
    return isinstance(error, torch.OutOfMemoryError) or says_out_of_memory(error)


def free_memory(device: torch.device) -> int | None:
    """Bytes that a run may still take: of the GPU, or of the machine and what the process is allowed of it. None where nobody tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu" or sys.platform != "linux":
        return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, StopIteration, ValueError):
        return None
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    return found if allowed == resource.RLIM_INFINITY else min(found, max(0, allowed - used))


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the hardware has bf16 products; an emulation would be slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of the products in training: auto | fp32 | bf16 | fp16. Raises UserError where the device cannot."""
    if name == "fp16" and device.type != "cuda":
        raise UserError(f"train.precision fp16 needs a CUDA GPU and the device is {device.type}; set precision: auto, bf16 or fp32")
    if name == "auto":
        return torch.bfloat16 if multiplies_bf16(device) else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


@contextlib.contextmanager
def float32_products(device: torch.device, *, tf32: bool) -> Iterator[None]:
    """On a GPU, whether float32 products may be of TF32; afterwards all is as it was. Elsewhere nothing is changed.

    By itself PyTorch allows it in cuDNN and not in cuBLAS; here one choice holds for both.
    """
    if device.type != "cuda":
        yield
        return
    places: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "tf32" if tf32 else "ieee"
        yield
    finally:
        for place, precision in zip(places, before):
            place.fp32_precision = precision


def seeded(device: torch.device, *entropy: int) -> torch.Generator:
    """A generator whose seed is drawn from all of `entropy`, so that neighbouring numbers give unrelated streams."""
    seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed) >> 1)
