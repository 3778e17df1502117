"""What a listing shows of run directories, whatever lies there, and that nothing goes which charrnn has not made."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from charrnn.checkpoint import save_model
from charrnn.cli import main
from charrnn.config import Config, build_config
from charrnn.data.vocabulary import Vocabulary
from charrnn.lock import locked
from charrnn.models import build_architecture
from charrnn.ranking import BEST_BY
from charrnn.run_files import FILES, HEARTBEAT, OWN
from charrnn.runs import QUIET, Run, find, look
from charrnn.tasks import TASKS

ROOT = Path(__file__).parent.parent
HERE = platform.node()
MADE = ("config.yaml", "best.safetensors", "last.safetensors", "last.state.pt", "metrics.jsonl", "samples.txt", HEARTBEAT)  # by `make`


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def config_for(run: str, **train: Any) -> Config:
    settings = {"run": run, "data": {"path": "t.txt"}, "model": {"embedding_size": 4, "hidden_size": 4}, "train": {"max_steps": 9, **train}}
    return build_config(settings, "test")


def make(run: str, best: float | None = 2.0, step: int = 9, state: str | None = None, why: str = "", **train: Any) -> Path:
    """A run as training leaves it behind, without the training."""
    path, config = Path(run), config_for(run, **train)
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(f"# Written by charrnn 0. To go on\n{config.to_yaml()}", encoding="utf-8")
    vocabulary = Vocabulary.from_counts(Counter(map(ord, "abc")), ends=False)
    with torch.random.fork_rng():
        model = build_architecture(config, len(vocabulary), None)
    metrics = {} if best is None else {"val_nats_per_char": best}
    for name in ("best", "last"):
        save_model(path / f"{name}.safetensors", model, config, vocabulary, step, metrics)
    (path / "last.state.pt").write_bytes(b"state" * 100)
    lines = [{"step": step, "epoch": 0.5, "seconds": 3.0, "nats_per_char": 2.5}, {"step": step, "epoch": 0.5, "seconds": 3.0, **metrics}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "samples.txt").write_text("=== step ===\n")
    if state:
        beat(path, state, why=why, step=step)
    return path


def beat(path: Path, state: str, *, ago: float = 0.0, host: str = HERE, why: str = "", step: int = 9) -> None:
    values = {"time": time.time() - ago, "host": host, "pid": 7, "step": step, "progress": 1.0, "state": state, "why": why}
    (path / HEARTBEAT).write_text(json.dumps(values))


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["runs", *arguments])
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def found(*folders: str) -> dict[str, Run]:
    return {str(run.path): run for run in find([Path(folder) for folder in folders])}


def test_what_chooses_the_best_is_what_the_tasks_say() -> None:
    assert {name: vars(task)["best_by"] for name, task in TASKS.items()} == BEST_BY
    assert set(FILES) <= set(OWN)


@pytest.mark.parametrize("state", ["finished", "early_stopped", "interrupted", "terminated", "diverged", "failed"])
def test_the_heartbeat_tells_how_a_run_ended(state: str) -> None:
    run = look(make("runs/a", 1.5, state=state, why="a reason" if state == "failed" else ""))
    assert (run.state, run.why, run.task, run.step, run.best, run.best_by, run.best_step) == (
        state, "a reason" if state == "failed" else "", "lm", 9, 1.5, "nats_per_char", 9,
    )  # fmt: skip
    assert run.bytes == sum(path.stat().st_size for path in Path("runs/a").iterdir())
    assert run.touched is not None and abs(time.time() - run.touched) < 60


def test_who_is_at_work_holds_the_lock_and_who_does_not_is_gone() -> None:
    path = make("runs/a", state="running")
    with locked(path / ".lock"):
        assert look(path).state == "running" and look(path).why == ""
        beat(path, "running", ago=3000)
        assert (look(path).state, look(path).why) == ("running", "without a sign of life for 50 min")
        beat(path, "finished", ago=3000)  # of the run before it is resumed
        assert look(path).state == "running"
    beat(path, "running")
    assert look(path).state == "lost" and look(path).why.startswith(f"process 7 on {HERE} is gone, last heard of ")
    beat(path, "running", host="elsewhere")  # where a lock may not reach
    assert (look(path).state, look(path).why) == ("running", "on elsewhere")
    beat(path, "running", host="elsewhere", ago=QUIET + 60)
    assert look(path).state == "lost"


def test_without_a_heartbeat_the_other_files_tell() -> None:
    assert look(make("a", step=9)).state == "finished"
    assert look(make("b", step=5)).state == "interrupted"
    assert look(make("c", step=5, max_epochs=0.5)).state == "finished"
    assert look(make("d", step=5, max_minutes=0.05)).state == "finished"
    killed = make("e", step=5)
    (killed / ".lock").write_text("process 3")
    assert (look(killed).state, look(killed).why) == ("lost", "its process was killed")
    stopped = make("f", step=5, patience=2)
    with open(stopped / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps({"step": step, "val_nats_per_char": 3.0}) + "\n" for step in (6, 7))
    assert look(stopped).state == "early_stopped" and look(stopped).best_step == 5
    for name in ("best.safetensors", "last.safetensors", "last.state.pt"):
        (stopped / name).unlink()
    assert (look(stopped).best, look(stopped).best_step) == (2.0, 5)  # from the journal


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def bytes_of(payload: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes(payload)

    return damage


DAMAGES: dict[str, Callable[[Path], None]] = {
    "zeros": bytes_of(b"\0" * 100),
    "empty": bytes_of(b""),
    "not UTF-8": bytes_of(b"task: \xff\xfe"),
    "nested": bytes_of(b"[" * 60_000),
    "a list": bytes_of(b"[1, 2]\n"),
    "types": bytes_of(b'{"step": true, "time": "x", "state": ["running"], "host": 3, "pid": -1, "val_nats_per_char": 1e999}\n'),
    "a number": bytes_of(b"9" * 5000 + b"\n"),
    "pipe": fifo,
    "directory": directory,
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [name for name in MADE if name != "samples.txt"])
def test_a_damaged_file_is_a_line_and_nothing_waits(name: str, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = make("runs/a", state="finished")
    make("runs/b", state="finished")
    DAMAGES[damage](path / name)
    code, out, err = said(capsys)
    assert code == 0 and err == "" and len(out.splitlines()) == 3
    assert re.search(r"^runs/b +finished ", out, re.MULTILINE)
    line = out.splitlines()[1]
    harmless = name == "last.state.pt" or (name, damage) in {("metrics.jsonl", "empty"), ("metrics.jsonl", "types")}
    assert re.match(r"runs/a +finished " if harmless else rf"runs/a +damaged .* {re.escape(name)} ", line), line
    said(capsys, "prune", "--older-than", "0m", "--yes")
    assert not Path("runs/b").exists()


def test_names_that_a_terminal_would_obey_are_shown_as_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    make("runs/\x1b[31mred", state="failed", why="\x1b[2J\nsecond")
    _, out, _ = said(capsys)
    assert "\x1b" not in out and r"runs/\x1b[31mred" in out and out.count("\n") == 2


def test_nested_runs_are_found_and_links_are_not_followed() -> None:
    make("runs/group/deep/a")
    make("elsewhere/b")
    Path("runs/link").symlink_to("../elsewhere")
    Path("runs/loop").symlink_to(".")
    Path("runs/configs").mkdir()
    Path("runs/configs/config.yaml").write_text("task: lm")  # somebody's, and no run
    assert list(found("runs")) == ["runs/group/deep/a"]
    assert list(found("runs", "runs/group", "runs/link")) == ["runs/group/deep/a", "runs/link/b"]


def test_the_table_the_order_and_the_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys) == (0, "no runs in runs\n", "")
    for name, best, age in (("a", 2.0, 3000.0), ("b", 1.0, 90000.0), ("c", None, 10.0)):
        path = make(f"runs/{name}", best, state="finished")
        for file in path.iterdir():
            os.utime(file, (time.time() - age,) * 2)
    _, out, _ = said(capsys)
    assert [line.split()[0] for line in out.splitlines()] == ["run", "runs/a", "runs/b", "runs/c"]
    assert re.match(r"runs/a +finished +lm +9 +2\.0000 +val nats/char +9 +50 min +\d+\.\d kB$", out.splitlines()[1])
    for order, names in (("best", "bac"), ("age", "cab"), ("name", "abc")):
        lines = [json.loads(line) for line in said(capsys, "--sort", order, "--json")[1].splitlines()]
        assert [line["run"] for line in lines] == [f"runs/{name}" for name in names]
    assert set(lines[0]) == {"run", "state", "why", "task", "step", "best", "best_by", "best_step", "touched", "bytes"}
    for arguments, line in {
        ("nowhere",): "charrnn: error: nowhere: no such folder; name one that holds runs\n",
        ("runs/a/config.yaml",): "charrnn: error: runs/a/config.yaml: is a file; name a folder that holds runs\n",
        ("prune",): "charrnn: error: charrnn runs prune: nothing says which runs go; give --keep-best N, --older-than 30d, --failed or",
        ("prune", "--older-than", "soon"): "charrnn: error: --older-than 'soon': no span of time; expected a number and m, h, d or w, such",
    }.items():
        code, out, err = said(capsys, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith(line)


LISTED = """
import sys
from charrnn.cli import main
try:
    main(["runs"])
except SystemExit:
    print([name for name in ("torch", "numpy") if name in sys.modules])
"""


def test_a_listing_does_not_wait_for_torch() -> None:
    make("runs/a", state="finished")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", LISTED], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and "runs/a" in done.stdout


def test_prune_tells_first_and_deletes_with_yes(capsys: pytest.CaptureFixture[str]) -> None:
    for name, best in (("a", 2.0), ("b", 1.0), ("c", 3.0)):
        make(f"runs/{name}", best, state="finished")
    make("runs/d", 9.0, step=5, state="interrupted")  # may still become the best
    size = sum(file.stat().st_size for name in "ac" for file in Path(f"runs/{name}").iterdir())
    code, out, err = said(capsys, "prune", "--keep-best", "1")
    assert code == 0 and err == "" and [line.split()[0] for line in out.splitlines()[:-1]] == ["runs/a", "runs/c"]
    assert out.splitlines()[-1] == f"{size:,} bytes would be freed; nothing is deleted without --yes" and len(found("runs")) == 4
    code, out, err = said(capsys, "prune", "--keep-best", "1", "--yes")
    assert code == 0 and out.splitlines()[-1] == f"{size:,} bytes freed"
    assert sorted(path.name for path in Path("runs").iterdir()) == ["b", "d"]
    assert said(capsys, "prune", "--keep-best", "1")[1] == "nothing to delete in runs\n"


def test_prune_takes_what_all_of_its_flags_ask_for(capsys: pytest.CaptureFixture[str]) -> None:
    for name, state, age in (("old", "finished", 40.0), ("bad", "failed", 1.0), ("oldbad", "diverged", 40.0), ("good", "finished", 1.0)):
        for file in make(f"runs/{name}", state=state).iterdir():
            os.utime(file, (time.time() - age * 86400,) * 2)

    def chosen(*arguments: str) -> list[str]:
        return [line.split()[0].removeprefix("runs/") for line in said(capsys, "prune", *arguments)[1].splitlines()[:-1]]

    assert chosen("--failed") == ["bad", "oldbad"]
    assert chosen("--older-than", "30d") == ["old", "oldbad"]
    assert chosen("--failed", "--older-than", "30d") == ["oldbad"]
    assert chosen("--states") == ["good", "old"] and chosen("--states", "--older-than", "2w") == ["old"]
    assert chosen("--failed", "--keep-best", "4") == []


def test_prune_of_states_leaves_the_models(capsys: pytest.CaptureFixture[str]) -> None:
    done, going = make("runs/a", state="finished"), make("runs/b", step=4, state="interrupted")
    (done / "previous.state.pt").write_bytes(b"older")
    (done / "step-00000003.safetensors").write_bytes(b"kept")
    assert said(capsys, "prune", "--states", "--yes")[1] == "runs/a  last.state.pt, previous.state.pt, 505 bytes\n505 bytes freed\n"
    assert (done / "best.safetensors").exists() and (done / "step-00000003.safetensors").exists() and (going / "last.state.pt").exists()
    assert look(done).state == "finished"


def test_a_mistyped_command_is_not_taken_for_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    expected = "charrnn: error: charrnn runs: 'prun' is neither a command nor a folder; did you mean 'prune'?\n"
    assert said(capsys, "prun", "--failed") == (2, "", expected)
    assert said(capsys, "runs") == (2, "", "charrnn: error: runs: no such folder; name one that holds runs\n")
    make("prun/a", state="finished")
    assert said(capsys, "prun")[1].splitlines()[1].startswith("prun/a")


def test_prune_takes_the_models_that_were_kept_too(capsys: pytest.CaptureFixture[str]) -> None:
    path = make("runs/a", state="finished")
    size = look(path).bytes
    for name in ("step-00000009.safetensors", ".step-00000010.safetensors.123.partial"):
        (path / name).write_bytes(b"model")
    assert look(path).bytes == size + 10
    code, out, err = said(capsys, "prune", "--keep-best", "0", "--yes")
    assert (code, err) == (0, "") and out.splitlines()[-1] == f"{size + 10:,} bytes freed" and not path.exists()


def test_prune_never_touches_a_run_at_work_nor_what_is_not_ours(capsys: pytest.CaptureFixture[str]) -> None:
    running, remote, mixed, theirs = (make(f"runs/{name}", state="finished") for name in ("running", "remote", "mixed", "theirs"))
    beat(remote, "running", host="elsewhere")
    (mixed / "notes.txt").write_text("mine")
    (mixed / "step-00000003.safetensors").write_text("of train.keep")
    (mixed / "samples.txt").unlink()
    (mixed / "samples.txt").symlink_to("/etc/hostname")
    (mixed / "tensorboard").mkdir()
    for name in ("events.out.tfevents.1.h", "mine.txt"):
        (mixed / "tensorboard" / name).write_text("x")
    (theirs / "config.yaml").write_text("task: lm\n")  # not the one that a run has written
    with locked(running / ".lock"):
        code, out, err = said(capsys, "prune", "--older-than", "0m", "--yes")
    assert code == 0 and [line.split()[0] for line in out.splitlines()[:-1]] == ["runs/mixed"]
    assert err.splitlines() == [
        "charrnn: warning: runs/theirs: left, for its config.yaml is not one that charrnn has written",
        "charrnn: warning: runs/mixed: keeps notes.txt, samples.txt, tensorboard/mine.txt, 3 files that charrnn has not made",
    ]
    left = sorted(str(path.relative_to(mixed)) for path in mixed.rglob("*"))
    assert left == ["notes.txt", "samples.txt", "tensorboard", "tensorboard/mine.txt"]
    assert all(set(MADE) <= {file.name for file in path.iterdir()} for path in (running, remote, theirs))


def test_a_job_that_begins_meanwhile_is_left_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from charrnn import runs

    path = make("runs/a", state="failed")
    choose = runs.choose
    held = locked(path / ".lock")

    def slow(*arguments: Any) -> Any:
        chosen = choose(*arguments)
        held.__enter__()
        return chosen

    monkeypatch.setattr(runs, "choose", slow)
    _, out, err = said(capsys, "prune", "--failed", "--yes")
    held.__exit__(None, None, None)
    assert out == "0 bytes freed\n" and err == "charrnn: warning: runs/a: left, for a job has begun in it\n"
    assert set(MADE) <= {file.name for file in path.iterdir()}


def test_what_a_sweep_has_noted_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    make("runs/s/001-a", state="running")
    records = Path("runs/s/.sweep")
    records.mkdir()
    for name in ("001-a", "002-b"):
        (records / f"{name}.json").write_text(json.dumps({"state": "failed", "why": f"reason of {name}", "claim": 1}))
    (records / "003-c.json").write_bytes(b"\0")
    runs = found("runs")
    assert {path: (run.state, run.why) for path, run in runs.items()} == {
        "runs/s/001-a": ("failed", "reason of 001-a"),
        "runs/s/002-b": ("failed", "reason of 002-b"),  # it has no directory
    }
    said(capsys, "prune", "--failed", "--yes")
    assert not Path("runs/s/001-a").exists() and sorted(path.name for path in records.iterdir()) == [
        "001-a.json",
        "002-b.json",
        "003-c.json",
    ]
