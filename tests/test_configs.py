"""Every YAML that ships is loaded, built and stepped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from charrnn.config import load_config
from charrnn.optimization import build_optimizer
from charrnn.sweep import load_sweep
from charrnn.tasks import load_task

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def test_there_are_configs() -> None:
    assert {path.stem for path in CONFIGS} >= {"demo", "shakespeare", "shakespeare-3min", "poems", "lyrics", "char-rnn", "python-stdlib"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_loaded_built_and_stepped(path: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"title {i}: a line, and more of it，也有。\n\n" for i in range(60)), encoding="utf-8")
    table = tmp_path / "table.tsv"
    table.write_text("label\ttext\ttext_a\n" + "".join(f"{i % 2}\ta line {i}\tand another\n" for i in range(60)), encoding="utf-8")
    columns = tmp_path / "columns.conll"
    columns.write_text("a B-X\nb I-X\nc O\n\n" * 60, encoding="utf-8")
    shipped = load_config(path)
    if shipped.task == "transcribe":
        text = tmp_path / "manifest.tsv"
        text.write_text("audio\ttranscript\n" + "".join(f"{i}.npy\tsaid {i}\n" for i in range(8)), encoding="utf-8")
        for i in range(8):
            np.save(tmp_path / f"{i}.npy", np.random.default_rng(i).normal(size=(30 + i, shipped.data.audio.num_mels)).astype(np.float32))
    elif shipped.task == "caption":
        text = tmp_path / "captions.tsv"
        text.write_text("image\tcaption\n" + "".join(f"{i // 2}.png\tpicture {i}\n" for i in range(16)), encoding="utf-8")
        for i in range(8):
            Image.new("RGB", (40, 30), (30 * i, 0, 0)).save(tmp_path / f"{i}.png")
    elif shipped.task == "classify" or shipped.data.field:
        text = table
    elif shipped.task == "tag" and shipped.data.labels == "column":
        text = columns
    overrides = [f"data.path={text}", "data.val_path=null", "data.test_path=null", "data.source=files", "data.vocabulary.min_count=1"]
    overrides.append(f"data.cache={tmp_path / 'cache'}")
    overrides += ["data.images.folder=null"] if shipped.task == "caption" else []
    # A full-size model steps as well as a small one, only slower.
    shorter = ["train.tbptt_window=5"] if shipped.is_windowed else []
    config = load_config(path, [*overrides, "train.batch_size=2", *shorter])
    task = load_task(config)
    model = task.model()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = build_optimizer(config.train, model)
    loss, tally, _ = task.loss(model, next(task.batches("train")), None, generator=torch.Generator().manual_seed(1))
    torch.autograd.backward(loss / tally.count)
    optimizer.step()
    assert torch.isfinite(loss)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters()))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_says_what_it_is_for(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert load_config(path).run == f"runs/{path.stem}"


@pytest.mark.parametrize("path", sorted((CONFIGS[0].parent / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_sweep_is_valid_with_the_config_that_it_is_called_after(path: Path) -> None:
    sweep = load_sweep(path, CONFIGS[0].parent / path.name)
    assert path.read_text(encoding="utf-8").startswith("# ") and sweep.folder == Path(f"runs/{path.stem}-sweep") and len(sweep.trials) > 1
