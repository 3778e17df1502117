"""Damage to any file of a run is refused by one line, or told and mended, or harmless: it never changes a result in silence."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from charrnn import training
from charrnn.atomic import copy_atomically, write_atomically
from charrnn.checkpoint import load_model, load_state, save_state
from charrnn.cli import main
from charrnn.config import Config, build_config, load_config
from charrnn.data.vocabulary import Vocabulary
from charrnn.engine import Unfit, instructions, open_language_model
from charrnn.errors import CheckpointError, DataError, UserError
from charrnn.novelty import keep_text, kept_index
from charrnn.run_directory import RunDirectory
from charrnn.run_files import FILES, own_files
from charrnn.training import train
from tests.test_training import Listener, assert_same_run

FLIPS = 200  # places of a file, spread over it
Run = Callable[..., Config]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("integrity")
    (folder / "text.txt").write_text("the cat sat on a mat. " * 40)
    return folder


def settings(place: Path, run: Path | str, **train_: Any) -> Config:
    defaults = {"max_steps": 12, "batch_size": 4, "tbptt_window": 6, "evaluate_every": 4, "save_every": 4, "log_every": 1}
    sections = {
        "data": {"path": str(place / "text.txt"), "cache": str(place / "cache")},
        "model": {"embedding_size": 3, "hidden_size": 4},
        "train": {**defaults, "precision": "fp32", "threads": 1, "warmup_steps": 2, **train_},
    }
    return build_config({"run": str(run), "device": "cpu", **sections}, "test")


@pytest.fixture(scope="module")
def halfway(place: Path) -> Path:
    """A run that was interrupted at step 9: the last state is of that step, and the one before it of step 8."""
    train(settings(place, place / "whole"), reporter=Listener())

    def stop(report: training.StepReport) -> None:
        if report.step == 9:
            raise KeyboardInterrupt

    assert train(settings(place, place / "halfway"), reporter=Listener(stop)).status == "interrupted"
    return place / "halfway"


@pytest.fixture
def run(halfway: Path, tmp_path: Path) -> Path:
    """A copy of the interrupted run, to be damaged."""
    return Path(shutil.copytree(halfway, tmp_path / "run"))


def flipped(content: bytes, at: int) -> bytes:
    """The same with one bit of byte `at` turned, of each byte another."""
    return content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]


def places(content: bytes) -> list[int]:
    return sorted({i * len(content) // FLIPS for i in range(FLIPS)} | {len(content) - 1})


def spoil(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(flipped(content, len(content) // 2))


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error) and len(str(error)) <= 2100
    return str(error)


# Models


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors"])
def test_a_model_with_one_bit_turned_is_refused(run: Path, name: str) -> None:
    path = run / name
    whole, read = path.read_bytes(), [load_model] + [open_language_model] * bool(instructions())
    harmless = 0
    for at in places(whole):
        content = flipped(whole, at)
        path.write_bytes(content)
        for opened in read:
            try:
                opened(path)
            except (CheckpointError, Unfit) as refused:
                one_line(refused)
            else:  # the word itself that names the checksum: all else is as it was
                assert b'"checksum"' not in content and abs(at - whole.index(b'"checksum"')) < 10
                harmless += 1
    assert harmless <= 2 * len(read)


def test_the_weights_of_a_model_are_behind_its_checksum_too(run: Path) -> None:
    path = run / "last.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # the sign, or the exponent, of the last weight
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.safetensors: damaged: its content is not what its checksum says; copy it again"):
        load_model(path)


def test_a_model_of_before_there_were_checksums_is_read(run: Path) -> None:
    path = run / "last.safetensors"
    weights = load_model(path).weights
    with safetensors.safe_open(path, "pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "checksum"}
    safetensors.torch.save_file(weights, path, metadata)
    assert load_model(path).step == 9
    if instructions():
        assert open_language_model(path).vocabulary == load_model(path).vocabulary


# States


@pytest.mark.parametrize("name", ["last.state.pt", "previous.state.pt"])
def test_a_state_with_one_bit_turned_is_refused(run: Path, name: str) -> None:
    whole = (run / name).read_bytes()
    for at in places(whole):
        (run / name).write_bytes(flipped(whole, at))
        with pytest.raises(CheckpointError, match="damaged: ") as refused:
            load_state(run / name)
        assert name in one_line(refused.value)


def test_a_state_that_is_cut_off_is_refused_also_where_only_its_checksum_is_gone(run: Path) -> None:
    path = run / "last.state.pt"
    whole = path.read_bytes()
    for left in [0, 1, *range(2, len(whole), len(whole) // 50), *range(len(whole) - 60, len(whole))]:
        path.write_bytes(whole[:left])
        with pytest.raises(CheckpointError, match="damaged: "):
            load_state(path)


def test_pytorch_reads_a_state_as_it_lies_there(run: Path) -> None:
    assert torch.load(run / "last.state.pt", weights_only=True)["counters"]["step"] == 9


def test_a_state_of_before_there_were_checksums_is_read(run: Path) -> None:
    state = load_state(run / "last.state.pt")
    torch.save({**state, "state_version": 1}, run / "last.state.pt")
    assert load_state(run / "last.state.pt")["counters"]["step"] == 9


def resumed(place: Path, run: Path, **train_: Any) -> Listener:
    listener = Listener()
    train(settings(place, run, **train_), resume=True, reporter=listener)
    return listener


def test_a_damaged_state_is_told_and_the_one_before_it_used(place: Path, run: Path) -> None:
    damaged = flipped((run / "last.state.pt").read_bytes(), 2000)
    (run / "last.state.pt").write_bytes(damaged)
    listener = resumed(place, run)
    assert listener.warnings == [
        f"{run / 'last.state.pt'}: damaged: its content is not what its checksum says; back to step 8, of the state before it, "
        "previous.state.pt; what was refused is kept as refused.state.pt"
    ]
    assert_same_run(place / "whole", run)  # journals too: what was reported of step 9 stands there once
    assert (run / "refused.state.pt").read_bytes() == damaged
    assert {path.name for path in run.iterdir()} == {*FILES, "refused.state.pt"}
    train(settings(place, run), overwrite=True, reporter=Listener())
    assert {path.name for path in run.iterdir()} == set(FILES)


@pytest.mark.parametrize("content", [b"", b"nonsense", None], ids=["empty", "nonsense", "missing"])
def test_a_state_that_is_none_or_not_there_is_one_that_is_damaged(place: Path, run: Path, content: bytes | None) -> None:
    """Where a file system has no links a crash may leave the state before alone."""
    if content is None:
        (run / "last.state.pt").unlink()
    else:
        (run / "last.state.pt").write_bytes(content)
    (warning,) = resumed(place, run).warnings
    assert "back to step 8, of the state before it" in warning and ("is kept" in warning) == (content is not None)
    assert_same_run(place / "whole", run)


@pytest.mark.parametrize(
    "change, fact",
    [
        ({"state_version": 99, "charrnn_version": "9.9"}, "written by charrnn '9.9' in format 99"),
        ({"counters": {"step": -1}}, "does not fit this run: counters.step is wrong"),
        ({"model": {"embedding.weight": torch.zeros(1).expand(1 << 40)}}, "holds as many numbers as its shape says"),
        ({"config": "train: ["}, "does not fit this run: its config: line 1"),
    ],
    ids=["newer", "impossible", "hostile", "config"],
)
def test_a_state_that_cannot_be_gone_on_from_is_kept_and_the_one_before_it_used(
    place: Path, run: Path, change: dict[str, Any], fact: str
) -> None:
    save_state(run / "last.state.pt", {**load_state(run / "last.state.pt"), **change})
    (warning,) = resumed(place, run).warnings
    assert fact in warning and "back to step 8" in warning
    assert_same_run(place / "whole", run)


def test_two_damaged_states_are_one_line(place: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.suffix != ".pt"}
    spoil(run / "last.state.pt")
    (run / "previous.state.pt").write_bytes(b"nonsense")
    (run.parent / "config.yaml").write_text(settings(place, run).to_yaml())
    with pytest.raises(SystemExit) as ended:
        main(["train", "--config", str(run.parent / "config.yaml"), "--resume"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1
    assert "last.state.pt: damaged: its content is not what its checksum says; nor can the state before it, previous.state.pt: " in said
    assert said.endswith("--overwrite\n") and f"--init-from {run / 'last.safetensors'}" in said
    assert before == {path.name: path.read_bytes() for path in run.iterdir() if path.suffix != ".pt"}


@pytest.mark.parametrize("links", [True, False], ids=["links", "no-links"])
def test_at_any_moment_one_state_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """Stopped at whichever call to the system, a save leaves a state that can be read, and never two names of a half one."""
    last, previous = tmp_path / "last.state.pt", tmp_path / "previous.state.pt"
    save_state(last, {"step": 1})
    save_state(last, {"step": 2}, before=previous)
    assert (load_state(previous)["step"], load_state(last)["step"]) == (1, 2)
    calls: list[str] = []
    stop_at = 0

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*args: Any, **how: Any) -> Any:
            if name == "link" and not links:
                raise OSError(errno.EPERM, "Operation not permitted")
            if len(calls) == stop_at:
                raise KeyboardInterrupt
            calls.append(name)
            return call(*args, **how)

        return instead

    with monkeypatch.context() as patched:
        for name in ("link", "replace", "fsync"):
            patched.setattr(os, name, watched(name, getattr(os, name)))
        for stop_at in range(10):
            calls.clear()
            try:
                save_state(last, {"step": 3 + stop_at}, before=previous)
            except KeyboardInterrupt:
                steps = [load_state(path)["step"] for path in (last, previous) if path.exists()]
                assert max(steps) in (2, 3 + stop_at)
                for path in tmp_path.glob(".*partial"):
                    path.unlink()
                if not last.exists():  # as a resumed run finds it
                    assert not links
                    previous.rename(last)
            else:
                break
    assert stop_at == (5 if links else 4)
    assert load_state(previous)["step"] < load_state(last)["step"] == 3 + stop_at


def test_a_disk_that_is_full_leaves_both_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last, previous = tmp_path / "last.state.pt", tmp_path / "previous.state.pt"
    for step in (1, 2):
        save_state(last, {"step": step}, before=previous)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        save_state(last, {"step": 3}, before=previous)
    assert (load_state(previous)["step"], load_state(last)["step"]) == (1, 2)


# The other files of a run


def test_a_configuration_with_one_bit_turned_never_changes_a_result_in_silence(
    place: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where a `run` of another name would begin
    path = run / "config.yaml"
    monkeypatch.setattr(RunDirectory, "make", lambda *_, **__: None)  # it would mend the file
    train(load_config(path, [f"run={run}"]), resume=True, reporter=Listener())
    whole, model = path.read_bytes(), (run / "last.safetensors").read_bytes()
    before = load_config(path).model_dump()
    found = {"refused": 0, "told": 0, "harmless": 0}
    for at in places(whole):
        path.write_bytes(flipped(whole, at))
        listener = Listener()
        try:
            config = load_config(path)
            if config.model_dump() != before:
                if config.run != str(place / "halfway"):
                    assert not Path(config.run).exists()  # then the run is said to begin at step 0
                    found["told"] += 1
                    continue
                train(config.model_copy(update={"run": str(run)}), resume=True, reporter=listener)
        except UserError as refused:
            one_line(refused)
            found["refused"] += 1
            continue
        told = [note for note in listener.notes if note.startswith("resumed with other settings: ")]
        found["told" if told else "harmless"] += 1
        assert told or (run / "last.safetensors").read_bytes() == model, flipped(whole, at)
    assert min(found.values()) > 0, found


def test_what_is_set_otherwise_on_the_way_is_said(place: Path, run: Path) -> None:
    listener = resumed(place, run, learning_rate=0.5, max_steps=13)
    said = "train.learning_rate was 0.003 and is now 0.5, train.max_steps was 12 and is now 13"
    assert f"resumed with other settings: {said}" in listener.notes


def test_a_run_is_compared_with_what_it_was_saved_with(place: Path, run: Path) -> None:
    """Its own config.yaml may be the one that is damaged, and the one that it is gone on with."""
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("seed: 1", "seed: 3"))
    assert load_config(path).seed == 3
    with pytest.raises(UserError, match="cannot resume: seed was 1 and is now 3; set it back"):
        train(load_config(path, [f"run={run}"]), resume=True, reporter=Listener())


def test_a_damaged_configuration_is_refused(place: Path, run: Path) -> None:
    (run / "config.yaml").write_bytes(b"task: lm\ntrain: {max_steps: \xff")
    with pytest.raises(UserError, match=r"config\.yaml: not UTF-8 text at byte 28"):
        resumed(place, run)


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.txt"])
@pytest.mark.parametrize("damage", ["flipped", "short", "gone"])
def test_a_damaged_journal_is_harmless(place: Path, run: Path, name: str, damage: str) -> None:
    path = run / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "short":
        path.write_bytes(content[: len(content) // 2])
    else:
        for at in places(content):
            content = flipped(content, at)
        path.write_bytes(content)
    assert not resumed(place, run).warnings
    for model in ("best.safetensors", "last.safetensors"):
        weights = [load_model(folder / model).weights for folder in (run, place / "whole")]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_kept_text_with_one_bit_turned_is_refused(tmp_path: Path) -> None:
    import numpy as np

    vocabulary, path = Vocabulary(("unknown",), "abcdefg"), tmp_path / "text.safetensors"
    keep_text(path, np.random.default_rng(0).integers(1, 8, 3000).astype(np.uint8), vocabulary)
    model, index = tmp_path / "best.safetensors", tmp_path / "text.index.safetensors"
    expected = kept_index(model, vocabulary)[0].order.copy()
    for file in (path, index):
        whole = file.read_bytes()
        for at in places(whole):
            file.write_bytes(flipped(whole, at))
            try:
                assert np.array_equal(kept_index(model, vocabulary)[0].order, expected)  # of the index: it is made again
            except DataError as refused:
                assert file == path and "text.safetensors: " in one_line(refused)
            else:
                assert file == index or b"checksum" not in flipped(whole, at) or at < 8
        file.write_bytes(whole)


# What is kept


def steps(run: Path) -> list[int]:
    return sorted(load_model(path).step for path in run.glob("step-*"))


def test_models_of_the_latest_saves_are_kept(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(settings(place, run, save_every=2, keep=3), reporter=Listener())
    assert sorted(path.name for path in run.glob("step-*")) == [f"step-000000{step}.safetensors" for step in ("08", "10", "12")]
    assert steps(run) == [8, 10, 12]
    assert (run / "last.safetensors").read_bytes() == (run / "step-00000012.safetensors").read_bytes()
    train(settings(place, run, save_every=2, keep=2, max_steps=14), resume=True, reporter=Listener())
    assert steps(run) == [12, 14]
    train(settings(place, run, save_every=2, max_steps=16), resume=True, reporter=Listener())
    assert steps(run) == [12, 14] and load_model(run / "last.safetensors").step == 16  # 0: none is kept, and none taken away
    train(settings(place, run), overwrite=True, reporter=Listener())
    assert {path.name for path in run.iterdir()} == set(FILES)


def test_only_what_a_run_has_made_is_taken_away(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(settings(place, run, save_every=2, keep=1), reporter=Listener())
    foreign = ["step-1.safetensors", "step-00000001.safetensors.bak", "step-000000001.safetensors", "my-step-00000001.safetensors", "x.pt"]
    for name in foreign:
        (run / name).write_bytes(b"of a person")
    train(settings(place, run, save_every=2, keep=1, max_steps=14), resume=True, reporter=Listener())
    train(settings(place, run), overwrite=True, reporter=Listener())
    assert {path.name for path in run.iterdir()} == {*FILES, *foreign}


def test_nothing_is_written_over_a_kept_model(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    train(settings(place, run, keep=2), reporter=Listener())
    kept = run / "step-00000008.safetensors"
    assert {path.name for path in own_files(kept)} == {path.name for path in run.iterdir()}
    for model, out in ((run, kept), (kept, run / "last.state.pt"), (kept, kept)):
        with pytest.raises(SystemExit) as ended:
            main(["sample", str(model), "--length", "3", "--out", str(out)])
        assert ended.value.code == 2 and "which is of the model's run" in capsys.readouterr().err


def test_a_file_system_without_links_has_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"whole")

    def none(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    copy_atomically(tmp_path / "a", tmp_path / "b")
    write_atomically(tmp_path / "a", b"new", before=tmp_path / "c")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"new", "b": b"whole", "c": b"whole"}


def test_a_run_is_saved_by_the_clock_too(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute passes with each step, and nothing is due by its number."""
    run, saved, now = tmp_path / "run", [], [1000.0]
    plain = training.Trainer.save

    def save(trainer: training.Trainer) -> None:
        saved.append(trainer.counters.step)
        plain(trainer)

    def step(trainer: training.Trainer) -> None:
        now[0] += 60
        plain_step(trainer)

    plain_step = training.Trainer.step
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(training.Trainer, "save", save)
    monkeypatch.setattr(training.Trainer, "step", step)
    train(settings(place, run, save_every=100, save_every_minutes=2.5), reporter=Listener())
    assert saved == [3, 6, 9, 12, 12]  # the last is that of the end
    train(settings(place, run, save_every=100, save_every_minutes=2.5, max_steps=16), resume=True, reporter=Listener())
    assert saved[5:] == [15, 16]
