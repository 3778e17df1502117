"""What the pyramid is worth: the same training time for encoders of four layers that leave every frame, every second, fourth or eighth.

Each is a run of `charrnn train` in a process of its own, one after the other, with the same data, sizes and minutes. Prints a table in
markdown (character error rate, steps, seconds an epoch, peak memory of the process) and draws the error rate over the minutes.

    python scripts/bench_pyramid.py --train train/manifest.tsv --val val/manifest.tsv --minutes 8 --plot pyramid.png
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

LAYERS = 4
CONFIG = Path(__file__).parent.parent / "configs" / "transcribe-connected.yaml"


class Result(NamedTuple):
    reduction: int
    points: list[tuple[float, float]]  # minutes, char_error_rate on val
    last: dict[str, float]  # the last evaluation
    steps: int
    seconds_per_epoch: float
    peak_mib: float


def levels_of(reduction: int) -> int:
    """Pyramidal layers, each of which reads two steps as one."""
    return reduction.bit_length() - 1


def measured(reduction: int, options: argparse.Namespace, folder: Path) -> Result:
    levels = levels_of(reduction)
    run = folder / f"reduction-{reduction}"
    settings = {
        "run": run,
        "data.path": options.train,
        "data.val_path": options.val,
        "data.cache": folder / "cache",
        "model.num_layers": LAYERS - levels,
        "model.pyramid.levels": levels,
        "train.max_minutes": options.minutes,
        "train.threads": options.threads,
        "train.evaluate_every": options.evaluate_every,
    }
    command = [sys.executable, "-m", "charrnn", "train", "--config", str(CONFIG)]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    job = subprocess.Popen(command, stdout=sys.stderr)
    _, status, usage = os.wait4(job.pid, 0)
    job.returncode = os.waitstatus_to_exitcode(status)
    if job.returncode:
        sys.exit(f"bench_pyramid: {' '.join(command)} ended with {job.returncode}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    val = [line for line in lines if "val_char_error_rate" in line]
    steps = [line for line in lines if "chars_per_second" in line]
    training = steps[-1]["chars"] / (sum(line["chars_per_second"] for line in steps) / len(steps))  # seconds, evaluations left out
    return Result(
        reduction,
        [(line["seconds"] / 60, line["val_char_error_rate"]) for line in val],
        val[-1],
        steps[-1]["step"],
        training / steps[-1]["epoch"],
        usage.ru_maxrss / 1024,
    )


def table(results: list[Result]) -> str:
    head = "| reduction | layers, plain + pyramidal | steps | seconds an epoch | peak memory | val CER | whole utterances right |"
    rows = [
        f"| {r.reduction} | {LAYERS - levels_of(r.reduction)} + {levels_of(r.reduction)} | {r.steps:,} | {r.seconds_per_epoch:.0f} "
        f"| {r.peak_mib:,.0f} MiB | {r.last['val_char_error_rate']:.1%} | {r.last['val_sentence_accuracy']:.1%} |"
        for r in results
    ]
    return "\n".join([head, "| --- " * 7 + "|", *rows])


def draw(results: list[Result], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), dpi=144)
    axes = figure.subplots()
    for r in results:
        axes.plot(*zip(*((minutes, min(1.0, rate)) for minutes, rate in r.points)), marker="o", markersize=3, label=f"{r.reduction}")
    axes.set(xlabel="minutes of training", ylabel="character error rate on val, cut at 1", ylim=(0, 1.02))
    axes.legend(title="frames an encoder step")
    axes.grid(alpha=0.3)
    figure.savefig(path, format="png", bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="a manifest, as scripts/make_connected_digits.py writes it")
    parser.add_argument("--val", required=True)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--evaluate-every", type=int, default=100, help="steps")
    parser.add_argument("--reductions", type=int, nargs="+", default=[1, 2, 4, 8], choices=[1, 2, 4, 8])
    parser.add_argument("--plot", type=Path, help="where to draw, as PNG")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = []
        for reduction in options.reductions:
            results.append(measured(reduction, options, Path(folder)))
            print(table(results[-1:]).splitlines()[-1], file=sys.stderr)
    print(table(results))
    if options.plot:
        draw(results, options.plot)


if __name__ == "__main__":
    main()
