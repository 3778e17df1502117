"""What a run has written of itself, read again: whole, cut off, gone back, mended by hand, or somebody else's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.errors import UserError
from charrnn.journal import Curve, Journal, Limits, common_metric, find_run, names_of, parse, samples_of, seconds_to_go


def written(*lines: dict[str, Any] | str) -> bytes:
    return "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines).encode()


def journal(run: Path, *lines: dict[str, Any] | str) -> Journal:
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.jsonl").write_bytes(written(*lines))
    return Journal.of(run)


def train(step: int, bits: float | None) -> dict[str, Any]:
    return {"step": step, "epoch": step / 100, "seconds": step / 10, "chars": 64 * step, "bits_per_char": bits, "grad_norm": 0.5}


def val(step: int, bits: float | None) -> dict[str, Any]:
    return {"step": step, "epoch": step / 100, "seconds": step / 10, "chars": 64 * step, "val_bits_per_char": bits, "val_accuracy": 0.5}


def test_curves_run_along_steps_characters_and_seconds(tmp_path: Path) -> None:
    found = journal(tmp_path, train(10, 3.0), train(20, 2.5), val(20, 2.7), train(30, 2.4))
    assert found.curve("bits_per_char") == Curve([10, 20, 30], [3.0, 2.5, 2.4])
    assert found.curve("bits_per_char", "chars").x == [640, 1280, 1920] and found.curve("bits_per_char", "seconds").x == [1, 2, 3]
    assert found.curve("val_bits_per_char") == Curve([20], [2.7]) and found.metrics(True) == ["bits_per_char", "accuracy"]
    assert found.at_end() == {"step": 30, "epoch": 0.3, "seconds": 3.0, "chars": 1920}


def test_lines_that_are_no_reports_are_left_out_and_nulls_are_gaps(tmp_path: Path) -> None:
    bad = ["[1]", "nonsense", '{"step": "10"}', '{"bits_per_char": 2}', "[" * 100_000, '{"step": -1}', '{"step": 1e999}', '{"step": true}']
    huge = '{"step": 7, "bits_per_char": ' + "9" * 400 + ', "seconds": [1], "chars": NaN, "colour": "red"}'
    found = journal(tmp_path, "\ufeffx", train(5, None), *bad, huge, train(9, 2.0), "\x00", '{"step": 10, "bits_per_ch')
    assert [line["step"] for line in found.lines] == [5, 7, 9] and found.foreign == len(bad) + 3
    values = found.curve("bits_per_char").y
    assert math.isnan(values[0]) and math.isnan(values[1]) and values[2] == 2.0
    assert found.curve("bits_per_char", "chars").x == [320, 576]  # a point without a place is none
    assert found.curve("bits_per_char").finite() == Curve([9], [2.0])
    assert Journal.of(tmp_path / "elsewhere").lines == []


@given(st.lists(st.binary(max_size=30) | st.sampled_from([written(train(3, 1.0)), written(val(3, 1.0)), written(train(2, 1.0))])))
def test_no_bytes_are_a_traceback_and_steps_never_fall(pieces: list[bytes]) -> None:
    lines, _ = parse(b"\n".join(pieces))
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps)


def test_a_run_that_went_back_counts_once(tmp_path: Path) -> None:
    lines = [train(10, 3.0), val(10, 3.1), train(20, 9.0), val(20, 9.1), train(30, 9.9), train(20, 2.5), val(20, 2.6), val(20, 2.7)]
    found = journal(tmp_path, *lines)
    assert found.curve("bits_per_char") == Curve([10, 20], [3.0, 2.5]) and found.curve("val_bits_per_char") == Curve([10, 20], [3.1, 2.7])


def test_the_best_is_the_least_cost_or_the_most_of_a_score(tmp_path: Path) -> None:
    lines = [val(10, 3.0) | {"val_f1": 0.1}, val(20, None) | {"val_f1": 0.9}, val(30, 2.0) | {"val_f1": 0.5}, val(40, 2.0)]
    found = journal(tmp_path, *lines)
    best, highest = found.best("bits_per_char"), found.best("f1")
    assert best and best["step"] == 30 and highest and highest["step"] == 20 and found.best("bleu_1") is None


@given(st.lists(st.floats(-5, 5) | st.just(math.nan), min_size=1, max_size=400))
def test_a_thinned_curve_keeps_ends_peaks_and_gaps(values: list[float]) -> None:
    whole = Curve([float(i) for i in range(len(values))], values)
    thin = whole.thinned(10)
    assert len(thin.x) <= max(40, 5 * 11) and thin.x[0] == 0 and thin.x[-1] == len(values) - 1
    assert {(x, repr(y)) for x, y in zip(*thin)} <= {(x, repr(y)) for x, y in zip(*whole)} and thin.x == sorted(set(thin.x))
    assert sorted(thin.finite().y)[:1] == sorted(whole.finite().y)[:1] and sorted(thin.finite().y)[-1:] == sorted(whole.finite().y)[-1:]
    assert any(map(math.isnan, thin.y)) == any(map(math.isnan, values))


def test_a_curve_of_one_place_can_be_thinned() -> None:
    assert len(Curve([3.0] * 500, [float(i) for i in range(500)]).thinned(10).x) == 2


def test_progress_is_of_the_limit_that_ends_the_run() -> None:
    assert Limits(100, 2.0, None).progress(10, 1.5, 999) == 0.75 and Limits().progress(5, 5, 5) == 0
    assert Limits(None, None, 2.0).progress(0, 0, 240) == 2
    assert seconds_to_go(0.25, 30) == 90 and seconds_to_go(0.5, 10, begun_at=0.25) == 20
    assert seconds_to_go(0.0, 30) is None and seconds_to_go(0.5, 0) is None and seconds_to_go(1.5, 30) == 0


def test_samples_are_read_whatever_they_hold(tmp_path: Path) -> None:
    assert samples_of(tmp_path) == []
    text = "no heading yet\n=== step 5, 1.5 nats per character ===\nab\n=== \n\nc\n\n=== step 10 ===\n\n\n"
    (tmp_path / "samples.txt").write_bytes(text.encode() + b"\xff=== step 11 ===\n")
    assert samples_of(tmp_path) == [("step 5, 1.5 nats per character", "ab\n=== \n\nc"), ("step 10", "\ufffd=== step 11 ===")]
    (tmp_path / "samples.txt").write_text("".join(f"=== step {i} ===\n{'x' * 90}\n\n" for i in range(100)))
    found = samples_of(tmp_path, most=1000)
    assert found[0].heading == "step 0" and found[-1].heading == "step 99" and len(found) < 20


def test_runs_are_found_by_directory_by_file_and_as_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no run is named, and none under .* has a metrics.jsonl; name a run directory or train one"):
        find_run(None)
    run = journal(Path("runs/poems"), train(1, 1.0)).run
    assert find_run("runs/poems") == find_run("runs/poems/metrics.jsonl") == find_run(None) == run
    with pytest.raises(UserError, match=r"^poems: no such run; did you mean 'runs/poems'\?"):
        find_run("poems")
    Path("runs/poems/config.yaml").touch()
    with pytest.raises(UserError, match=r"^runs/poems/config.yml: no such run; did you mean 'runs/poems/metrics.jsonl'\?"):
        find_run("runs/poems/config.yml")
    Path("runs/empty").mkdir()
    with pytest.raises(UserError, match=r"^runs/empty: the directory holds no metrics.jsonl; expected a run directory"):
        find_run("runs/empty")


def test_names_are_as_short_as_they_can_be_told_apart(tmp_path: Path) -> None:
    assert names_of([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert names_of([tmp_path / "x" / "a", tmp_path / "y" / "a"]) == ["x/a", "y/a"]
    assert names_of([tmp_path / "a", tmp_path / "a"]) == ["a", "a"] and names_of([Path("/")]) == ["/"]
    assert names_of([tmp_path / "\u202ea"]) == ["\\u202ea"]


def test_runs_are_compared_by_what_they_share(tmp_path: Path) -> None:
    lm = journal(tmp_path / "lm", train(1, 2.0), val(1, 2.1))
    tag = journal(tmp_path / "tag", {"step": 1, "nats_per_example": 1.0, "val_nats_per_example": 1.0, "val_accuracy": 0.5})
    assert common_metric([lm, lm], None) == "bits_per_char" and common_metric([lm, tag], "val_accuracy") == "accuracy"
    with pytest.raises(UserError, match=r"lm is measured by bits_per_char, and .*tag is not; name what both have with --metric: accuracy$"):
        common_metric([lm, tag], None)
    with pytest.raises(UserError, match=r"--metric acuracy: .*lm is not measured by that; expected one of .*did you mean 'accuracy'\?"):
        common_metric([lm], "acuracy")
    with pytest.raises(UserError, match=r"holds no figures yet \(1 line cannot be read\)"):
        common_metric([journal(tmp_path / "none", "half a l")], None)
