from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where there is no GPU, the tests of one are not among the tests."""
    of_gpus = [item for item in items if item.get_closest_marker("gpu")]
    if not of_gpus or torch.cuda.is_available():
        return
    config.hook.pytest_deselected(items=of_gpus)
    items[:] = [item for item in items if item not in of_gpus]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where encoded text goes that a test says no place for: never the home of who runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp()))
    return tmp_path_factory.getbasetemp() / "charrnn"


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C means what it means at a terminal: tests that run in the background of a script begin with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small models, one of each task, as `tests.web.playing` has them."""
    from tests.web.playing import make_models

    folder = tmp_path_factory.mktemp("playground")
    make_models(folder)
    return folder
