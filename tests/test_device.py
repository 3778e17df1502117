"""What a process does with its memory, and which device it takes."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from charrnn.device import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, float32_products, keep_freed_memory, resolve_device
from charrnn.errors import UserError

FAULTS = """
import resource, torch
from charrnn.device import keep_freed_memory

kept = keep_freed_memory()
torch.set_num_threads(1)
for step in range(20):
    if step == 10:  # by now every block has been there before
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(4 << 20) for _ in range(5)]  # of 16 MiB, freed together
    del blocks
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_that_a_step_frees_is_there_for_the_next() -> None:
    """Without the call most runs fault 160,000 times; a few are lucky in where their heap lies."""
    ran = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    kept, faults = ran.stdout.split()
    assert kept == str(platform.libc_ver()[0] == "glibc")
    if kept == "True":
        assert int(faults) < 1000


@pytest.mark.parametrize("most, kept", [(1 << 40, True), (32 << 20, True), (0, False)])
def test_a_malloc_that_refuses_is_asked_for_less(monkeypatch: pytest.MonkeyPatch, most: int, kept: bool) -> None:
    """An older glibc takes no mmap threshold above 32 MiB; the other threshold has no limit."""
    given: dict[int, int] = {}

    def mallopt(option: int, value: int) -> int:
        if option == M_MMAP_THRESHOLD and value > most:
            return 0
        given[option] = value
        return 1

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    assert keep_freed_memory() is kept
    assert given == {M_TRIM_THRESHOLD: 1 << 30} | ({M_MMAP_THRESHOLD: min(most, 1 << 30)} if kept else {})


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_another_system_is_left_alone(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    def library(_: None) -> None:
        raise TypeError("bad argument type for built-in operation")  # what Windows says

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(ctypes, "CDLL", library)
    assert not keep_freed_memory()


@pytest.mark.parametrize(
    "name, hint",
    [
        ("gpu", "did you mean 'cuda'?"),
        ("tpu", "did you mean 'cpu'?"),
        ("cuda:x", "did you mean 'cuda:0'?"),
        ("cuda:-1", "did you mean 'cuda:0'?"),
        ("cudax", "did you mean 'cuda'?"),
        ("CPU", "did you mean 'cpu'?"),
        ("", "expected auto, cpu, mps, cuda or cuda:N"),
    ],
)
def test_a_device_that_is_none_is_named(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"^device {name!r}: expected auto, cpu, mps, cuda or cuda:N") as error:
        resolve_device(name)
    assert str(error.value).endswith(hint)


def test_tf32_is_chosen_for_all_products_of_a_gpu_and_then_as_it_was() -> None:
    places: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    for tf32, precision in ((True, "tf32"), (False, "ieee")):
        with pytest.raises(KeyError), float32_products(torch.device("cuda"), tf32=tf32):
            assert [place.fp32_precision for place in places] == [precision] * 3
            raise KeyError
        assert [place.fp32_precision for place in places] == before
    with float32_products(torch.device("cpu"), tf32=True):
        assert [place.fp32_precision for place in places] == before
    assert torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "highest"  # others still ask in the old way
