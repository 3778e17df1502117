"""What a sweep comes to, and one line for each mistake in it, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from charrnn.errors import UserError
from charrnn.sweep import PLAN, Sweep, load_sweep, settle

BASE = """
data: {path: text.txt}
train: {max_steps: 4}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE, encoding="utf-8")


def swept(text: str, *overrides: str) -> Sweep:
    Path("sweep.yaml").write_text(text, encoding="utf-8")
    return load_sweep(Path("sweep.yaml"), Path("base.yaml"), overrides)


def searched(**space: Any) -> list[dict[str, Any]]:
    search = {"trials": 30, "seed": 1, "space": {key.replace("__", "."): value for key, value in space.items()}}
    return [trial.settings for trial in swept(yaml.safe_dump({"run": "runs/s", "random": search})).trials]


def test_a_grid_is_every_combination_with_readable_names() -> None:
    sweep = swept("run: runs/s\ngrid: {train.learning_rate: [1e-3, 0.003], model.hidden_size: [8, 16]}", "seed=5")
    assert [trial.name for trial in sweep.trials] == [
        "001-learning_rate=0.001-hidden_size=8",
        "002-learning_rate=0.001-hidden_size=16",
        "003-learning_rate=0.003-hidden_size=8",
        "004-learning_rate=0.003-hidden_size=16",
    ]
    last = sweep.trials[3].config
    assert (last.train.learning_rate, last.model.hidden_size, last.seed, last.train.max_steps) == (0.003, 16, 5, 4)
    assert last.run == f"runs/s/{sweep.trials[3].name}" and sweep.folder == Path("runs/s")


def test_names_tell_settings_apart_and_hold_no_path() -> None:
    grid = "{model.dropout.input: [0.1], model.dropout.output: [0], train.best_by: [../x/y], lstm_size: [8]}"
    (trial,) = swept(f"run: s\ngrid: {grid}").trials
    assert trial.name == "001-input=0.1-output=0-best_by=.._x_y-hidden_size=8"
    (trial,) = swept("run: s\ngrid: {data.field: [said], data.audio.field: [audio]}", "task=transcribe").trials
    assert trial.name == "001-data.field=said-audio.field=audio"
    (trial,) = swept(f"run: s\ngrid: {{train.best_by: [{'x' * 500}]}}").trials
    assert len(trial.name) == 120
    (trial,) = swept(f"run: s\ngrid: {{data.template: ['{'春眠' * 90}']}}").trials
    assert trial.name.startswith("001-template=春眠") and len(f".{trial.name}.10000.claim.{'0' * 16}.partial".encode()) <= 255


def test_a_random_search_is_the_same_for_all_and_lies_where_it_was_told() -> None:
    space = {
        "train__learning_rate": {"log_uniform": [1e-4, 1e-2]},
        "model__dropout__output": {"uniform": [0, 0.6]},
        "model__hidden_size": {"int_uniform": [8, 11]},
        "model__cell": {"choice": ["gru", "lstm"]},
    }
    found = searched(**space)
    assert found == searched(**dict(reversed(space.items())))
    assert all(1e-4 <= one["train.learning_rate"] <= 1e-2 and 0 <= one["model.dropout.output"] <= 0.6 for one in found)
    assert 8 < sum(one["train.learning_rate"] < 1e-3 for one in found) < 22  # as many below the middle of the logarithm
    assert {one["model.hidden_size"] for one in found} == {8, 9, 10, 11} and {one["model.cell"] for one in found} == {"gru", "lstm"}
    less = searched(**{key: space[key] for key in ("train__learning_rate", "model__cell")})
    assert [one["train.learning_rate"] for one in less] == [one["train.learning_rate"] for one in found]


def test_no_trial_stands_there_twice() -> None:
    found = swept(
        "run: s\nrandom: {trials: 6, space: {model.hidden_size: {int_uniform: [1, 3]}, model.cell: {choice: [gru, lstm]}}}"
    ).trials
    assert len({str(trial.settings) for trial in found}) == 6


MISTAKES = {
    "grid: {model.hidden_size: [8]}": "sweep.yaml: run: is missing; expected the folder that the trials share, such as run: runs/sweep",
    "run: s": "sweep.yaml: has neither grid nor random; expected one of them",
    "run: s\ngrid: {seed: [1]}\nrandom: {}": "sweep.yaml: has both grid and random; expected one of them",
    "run: s\ngird: {seed: [1]}": "sweep.yaml: unknown key 'gird'; did you mean 'grid'?",
    "run: s\ntrain: {max_steps: 3}": "sweep.yaml: unknown key 'train'; settings that all trials share belong in the file of --config",
    "run: s\ngrid: {model.hiden_size: [8]}": "sweep.yaml: grid: model: unknown key 'hiden_size'; did you mean 'hidden_size'?",
    "run: s\ngrid: {model.hidden_size: [8, eight]}": "sweep.yaml: grid: model.hidden_size: 'eight' is not valid; expected an integer",
    "run: s\ngrid: {model.hidden_size: 8}": "sweep.yaml: grid: model.hidden_size: 8 is not valid; expected a list of the values to try",
    "run: s\ngrid: {train.learning_rate: [1e-3, 0.001]}": "grid: train.learning_rate: 0.001 stands there twice; keep one of them",
    "run: s\ngrid: {train: {learning_rate: [1e-3]}}": "expected its keys by their whole names, such as train.batch_size",
    "run: s\ngrid: {lstm_size: [8], model.hidden_size: [8]}": "sweep.yaml: grid: model.hidden_size: model.hidden_size stands there twice",
    "run: s\ngrid: {run: [a, b]}": "sweep.yaml: grid: run: each trial has a directory of its own already; take it out",
    "run: s\ngrid: {seed: [2024-01-05]}": "expected numbers, text, true, false, null, or lists of them",
    "run: s\ngrid: {seed: &a [*a]}": "sweep.yaml: line 2, column 14: a reference names what it is a part of; write it out",
    "run: s\ngrid: {seed: [1, 2]\n": "sweep.yaml: line 3, column 1: not valid YAML",
    "run: s\ngrid: {model.bidirectional: [false, true]}": "a language model that reads from both sides has read its own answer",
    "run: s\ngrid: {seed: ["
    + ", ".join(map(str, range(10_001)))
    + "]}": "sweep.yaml: grid: comes to 10,001 trials; expected at most 10,000",
    "run: s\nrandom: {trials: many, space: {seed: {choice: [1]}}}": "random: trials: 'many' is not valid; expected a whole number",
    "run: s\nrandom: {trials: 2, space: {seed: [1, 2]}}": "random: space: seed: [1, 2] is not valid; expected one of choice,",
    "run: s\nrandom: {trials: 2, space: {seed: {log: [1, 2]}}}": "sweep.yaml: random: space: seed: unknown distribution 'log'",
    "run: s\nrandom: {trials: 2, space: {seed: {uniform: [2, 1]}}}": "seed: uniform: [2, 1] is not valid; expected two numbers, the lower",
    "run: s\nrandom: {trials: 2, space: {train.learning_rate: {log_uniform: [0, 1]}}}": "expected two numbers above 0, the lower one first",
    "run: s\nrandom: {trials: 2, space: {seed: {int_uniform: [1, 2.5]}}}": "expected two whole numbers, the lower one first",
    "run: s\nrandom: {trials: 9, space: {seed: {choice: [1, 2]}}}": "trials: 9 are wanted, and the space seems to have only 2 ",
    "run: s\nrandom: {trials: 2, space: {train.learning_rate: {uniform: [-2, -1]}}}": "train.learning_rate: -",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_one_line_with_its_place(text: str) -> None:
    with pytest.raises(UserError) as found:
        swept(text)
    assert MISTAKES[text] in str(found.value) and "\n" not in str(found.value)
    assert not Path("s").exists()


def test_what_is_set_and_tried_is_a_mistake() -> None:
    with pytest.raises(UserError, match=r"--set 'lstm_size=8': sweep.yaml tries values of model.hidden_size; take it out of one of them"):
        swept("run: s\ngrid: {model.hidden_size: [8]}", "lstm_size=8")
    with pytest.raises(UserError, match=r"--set 'run=x': names the directory of one run; the folder of a sweep is `run` in sweep.yaml"):
        swept("run: s\ngrid: {model.hidden_size: [8]}", "run=x")


def test_a_mistake_of_the_base_blames_the_base() -> None:
    Path("base.yaml").write_text(BASE + "model: {hiden_size: 3}", encoding="utf-8")
    with pytest.raises(UserError, match=r"^base.yaml: model: unknown key 'hiden_size'; did you mean 'hidden_size'\?"):
        swept("run: s\ngrid: {train.learning_rate: [1]}")


def test_the_plan_is_written_once_and_another_sweep_is_refused() -> None:
    text, place = "run: s\ngrid: {train.learning_rate: [1e-5, 1], model.cell: [lstm, gru]}", Path("sweep.yaml")
    settle(swept(text), place)
    written = Path("s", PLAN).read_bytes()
    settle(swept(text), place)
    settle(swept(text, "device=cpu", "data.path=elsewhere.txt", "data.cache=there"), place)  # as another machine may have it
    assert Path("s", PLAN).read_bytes() == written and b"&id" not in written
    with pytest.raises(
        UserError, match=r"^s: holds another sweep: train.max_steps was 4 and is now 5; set it back, or name another folder"
    ):
        settle(swept(text, "train.max_steps=5"), place)
    with pytest.raises(UserError, match=r"^s: holds another sweep, of 4 trials, and this one has 2; set it back"):
        settle(Sweep(Path("s"), swept(text).trials[:2]), place)
    with pytest.raises(UserError, match=r"^s: holds another sweep, without 002-learning_rate=1e-05-cell=rnn_tanh, which this one has; "):
        settle(swept(text.replace("gru", "rnn_tanh")), place)
    Path("s", PLAN).write_bytes(b"\0")
    with pytest.raises(UserError, match=r"^s/sweep.yaml: is not the plan of a sweep, or damaged"):
        settle(swept(text), place)


def test_a_folder_with_something_else_in_it_is_left_alone() -> None:
    Path("s").mkdir()
    Path("s/mine.txt").write_text("mine")
    with pytest.raises(
        UserError, match=r"^s: is no sweep and not empty \(it holds 'mine.txt'\); name another folder in `run` of sweep.yaml"
    ):
        settle(swept("run: s\ngrid: {model.hidden_size: [8]}"), Path("sweep.yaml"))
    assert [path.name for path in Path("s").iterdir()] == ["mine.txt"]
