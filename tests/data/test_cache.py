"""An entry of the cache is whole or not there, whatever happens while it is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from charrnn.data.cache import BUILDING, build_entry
from charrnn.errors import DataError


def is_whole(entry: Path) -> bool:
    return (entry / "one").exists() and (entry / "two").exists()


def make(made: Path, beside: Path) -> None:
    assert made.is_dir() and not list(made.iterdir()) and made.parent == beside
    (beside / "on the way").write_text("not kept")
    (made / "one").write_text("1")
    (made / "two").write_text("2")


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def test_an_entry_holds_what_was_made_and_no_more(tmp_path: Path) -> None:
    build_entry(tmp_path / "deep/cache/entry", make, is_whole)
    assert left(tmp_path / "deep/cache") == ["entry"] and left(tmp_path / "deep/cache/entry") == ["checksum", "one", "two"]


@pytest.mark.parametrize("error", [DataError("no sound"), ValueError("a bug"), KeyboardInterrupt()], ids=repr)
def test_what_goes_wrong_goes_on_to_the_caller_and_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def fails(made: Path, beside: Path) -> None:
        make(made, beside)
        raise error

    with pytest.raises(type(error)) as caught:
        build_entry(tmp_path / "cache/entry", fails, is_whole)
    assert caught.value is error and left(tmp_path / "cache") == []


def test_a_full_disk_is_said_to_be_the_caches(tmp_path: Path) -> None:
    def fails(made: Path, beside: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError) as caught:
        build_entry(tmp_path / "cache/entry", fails, is_whole)
    remedy = "free some space or name another directory in data.cache"
    assert str(caught.value) == f"data.cache {tmp_path / 'cache'}: cannot be written: No space left on device; {remedy}"
    assert left(tmp_path / "cache") == []


def test_a_damaged_entry_is_replaced_and_a_whole_one_of_another_job_is_left(tmp_path: Path) -> None:
    entry = tmp_path / "cache/entry"
    entry.mkdir(parents=True)
    (entry / "one").write_text("half")
    build_entry(entry, make, is_whole)
    assert (entry / "one").read_text() == "1" and left(entry) == ["checksum", "one", "two"]

    def beaten(made: Path, beside: Path) -> None:
        make(made, beside)
        (entry / "one").write_text("faster")

    build_entry(entry, beaten, is_whole)
    assert (entry / "one").read_text() == "faster" and left(tmp_path / "cache") == ["entry"]


def test_what_a_killed_job_left_is_swept(tmp_path: Path) -> None:
    dead = tmp_path / f"cache/{BUILDING}dead"
    (dead / "made").mkdir(parents=True)
    build_entry(tmp_path / "cache/entry", make, is_whole)
    assert left(tmp_path / "cache") == ["entry"]
