"""Task caption with networks of other packages: trained, averaged, stored, resumed, and read again where nothing can be downloaded."""

from __future__ import annotations

import importlib
import json
import site
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from charrnn.checkpoint import build_model, load_model, load_state
from charrnn.config import Config
from charrnn.errors import CheckpointError, UserError
from charrnn.evaluation import measure
from charrnn.models import count_parameters
from charrnn.models.backbone import Backbone
from charrnn.models.captioner import Captioner
from charrnn.run_directory import RunDirectory
from charrnn.tasks import load_task
from charrnn.training import Trainer, plan, train
from tests.foreign import HERE, forget, stand_in
from tests.tasks.test_caption import SHAPES, config, rows
from tests.test_cli import said_to
from tests.test_training import Listener, same

RESNET, NET = "torchvision/tiny_resnet", "timm/tinynet"


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)


def models() -> Any:
    return importlib.import_module("torchvision.models")


def settings(folder: Path, cnn: dict[str, Any], way: str = "first_step", **limits: Any) -> Config:
    written = config(folder, rows()[:16], {"image_as": way, "cnn": cnn}, val_fraction=0.0, val_path=str(folder / "captions.tsv"))
    asked = {"max_steps": 60, "warmup_steps": 5, "batch_size": 8, "learning_rate": 1e-2, "ema_decay": 0.9}
    asked |= {"evaluate_every": 20, "log_every": 5}
    return written.model_copy(update={"train": written.train.model_copy(update=asked | limits)})


def nats(run: Path, key: str = "nats_per_char") -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line[key] for line in lines if key in line]


@pytest.mark.parametrize(
    "cnn, way, precision",
    [
        ({"backbone": RESNET, "weights": "none"}, "first_step", "fp32"),
        ({"backbone": RESNET, "weights": "none"}, "attention", "bf16"),
        ({"backbone": NET}, "first_input", "bf16"),
        ({"backbone": "timm/tinyswin", "weights": "none", "fragments": {"count": 20}}, "attention", "fp32"),
        ({"backbone": RESNET, "frozen": True}, "first_step", "fp32"),
    ],
)  # fmt: skip
def test_it_learns_and_what_is_stored_is_what_was_measured(
    tmp_path: Path, cnn: dict[str, Any], way: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = settings(tmp_path, cnn, way, precision=precision)
    outcome = train(wanted, reporter=Listener())
    learned, measured = nats(tmp_path / "run"), nats(tmp_path / "run", "val_nats_per_char")
    assert learned[-1] < 0.5 * learned[0] and measured[-1] < measured[0]
    monkeypatch.setattr(models(), "offline", True)
    loaded = load_model(tmp_path / "run/best.safetensors")
    task, model = load_task(wanted), build_model(loaded)
    assert isinstance(model, Captioner) and model.encoder is not None and isinstance(model.encoder.cnn, Backbone)
    again = measure(task, model, "val").as_metrics("val_")
    assert again == pytest.approx(outcome.best, rel=1e-5)
    assert again["val_nats_per_char"] < 1.5 * learned[-1]  # with running means that belong to the averaged weights
    assert model.encoder.cnn.described() in model.described()["encoder"]


def test_the_average_has_the_running_means_of_its_weights(tmp_path: Path) -> None:
    task = load_task(settings(tmp_path, {"backbone": RESNET, "weights": "none"}))
    trainer = Trainer(task, RunDirectory(tmp_path / "run"), Listener(), torch.device("cpu"))
    assert trainer.average is not None
    rates = []
    for step in range(1, 31):
        trainer.step()
        rates.append(min(0.9, (1 + step) / (10 + step)))
        seen = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
        if step == 1:
            expected = {name: weight.detach().clone() for name, weight in task.model().named_parameters()}
        for name, weight in seen.items():
            expected[name] = expected[name].lerp(weight, 1 - rates[-1]) if weight.is_floating_point() else weight
    averaged = dict(trainer.average.model.named_parameters())
    for name, weight in expected.items():
        torch.testing.assert_close(averaged[name].detach(), weight, msg=name)
    assert int(averaged["encoder.cnn.network.bn1.num_batches_tracked"]) == 30
    own, average = (measure(task, model, "val").as_metrics()["nats_per_char"] for model in (trainer.model, trainer.average.model))
    assert average < 1.2 * own


@pytest.mark.parametrize("cnn", [{"backbone": RESNET}, {"backbone": RESNET, "frozen": True}])
def test_resumed_without_a_network_it_is_the_same_run_to_the_bit(
    tmp_path: Path, cnn: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = (("whole", 12), ("halves", 7), ("halves", 12))
    whole, half, halves = (settings(tmp_path / name, cnn, max_steps=steps, schedule="constant") for name, steps in runs)
    train(whole, reporter=Listener())
    train(half, reporter=Listener())
    monkeypatch.setattr(models(), "offline", True)
    train(halves, resume=True, reporter=Listener())
    one, other = (load_state(tmp_path / name / "run/last.state.pt") for name in ("whole", "halves"))
    for key in ("model", "average", "optimizer", "generators"):
        assert same(one[key], other[key]), key


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_run_begins_with_the_weights_that_are_asked_for(tmp_path: Path, ema_decay: float) -> None:
    wanted = settings(tmp_path, {"backbone": RESNET, "weights": "IMAGENET1K_V1"}, max_steps=1, learning_rate=1e-9, ema_decay=ema_decay)
    plan(wanted)
    assert models().downloads == []
    train(wanted, reporter=Listener())
    assert models().downloads == ["IMAGENET1K_V1"]
    theirs = models().get_model("tiny_resnet", models().Weights.IMAGENET1K_V1).state_dict()
    found = load_model(tmp_path / "run/last.safetensors").weights
    for name in ("conv1.weight", "layer2.1.bias"):
        torch.testing.assert_close(found[f"encoder.cnn.network.{name}"], theirs[name], atol=1e-6, rtol=0)


def test_a_download_that_fails_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models(), "offline", True)
    with pytest.raises(UserError, match=r"^model\.cnn\.weights: default of torchvision/tiny_resnet: its weights cannot be downloaded"):
        train(settings(tmp_path, {"backbone": RESNET}), reporter=Listener())
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"^model\.cnn\.weights: torchvision has no weights 'V9' for tiny_resnet"):
        plan(settings(tmp_path, {"backbone": RESNET, "weights": "V9"}))


def test_frozen_nothing_of_it_moves_and_another_run_may_let_it_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = settings(tmp_path / "frozen", {"backbone": RESNET, "frozen": True}, max_steps=6)
    train(frozen, reporter=Listener())
    theirs = models().get_model("tiny_resnet", models().Weights.DEFAULT).state_dict()
    loaded = load_model(tmp_path / "frozen/run/last.safetensors")
    kept = [name for name in loaded.weights if name.startswith("encoder.cnn.network.")]
    assert len(kept) > 10 and all(torch.equal(loaded.weights[name], theirs[name.removeprefix("encoder.cnn.network.")]) for name in kept)
    monkeypatch.setattr(models(), "offline", True)
    learning = settings(tmp_path / "learning", {"backbone": RESNET, "weights": "IMAGENET1K_V1"}, max_steps=1, learning_rate=1e-9)
    train(learning, init_from=str(tmp_path / "frozen/run"), reporter=Listener())
    begun = load_model(tmp_path / "learning/run/last.safetensors")
    for name in ("conv1.weight", "layer2.0.weight"):
        torch.testing.assert_close(begun.weights[f"encoder.cnn.network.{name}"], theirs[name], atol=1e-6, rtol=0)
    own = count_parameters(build_model(begun)) - count_parameters(build_model(loaded))
    assert own == sum(p.numel() for name, p in models().get_model("tiny_resnet").named_parameters() if not name.startswith("fc."))
    other = settings(tmp_path / "other", {"backbone": NET})
    with pytest.raises(CheckpointError, match=r"model\.cnn\.backbone is torchvision/tiny_resnet there and timm/tinynet here; set"):
        train(other, init_from=str(tmp_path / "frozen/run"), reporter=Listener())
    plain = config(tmp_path / "plain", rows()[:16], {"cnn": {}})
    with pytest.raises(CheckpointError, match=r"and null here; set the same with --set model\.cnn\.backbone=torchvision/tiny_resnet"):
        train(plain, init_from=str(tmp_path / "frozen/run"), reporter=Listener())


def test_the_command_line_tells_and_shows_and_asks_for_what_is_absent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cnn = {"backbone": RESNET, "weights": "none"}
    (tmp_path / "config.yaml").write_text(settings(tmp_path, cnn, "attention", max_steps=40).to_yaml(), encoding="utf-8")
    assert said_to(capsys, "train", "--config", "config.yaml").code == 0
    shown = said_to(capsys, "info", "run")
    assert shown.code == 0 and "encoder     torchvision/tiny_resnet, 16 channels\n" in shown.out
    assert "backbone: torchvision/tiny_resnet" in shown.out
    told = said_to(capsys, "caption", "run", SHAPES / rows()[0][0], "--json", "--html", "page.html")
    assert told.code == 0 and json.loads(told.out)["captions"] and (tmp_path / "page.html").stat().st_size > 1000
    forget(monkeypatch)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in (str(HERE), *site.getsitepackages())])
    missing = said_to(capsys, "caption", "run", SHAPES / rows()[0][0])
    assert missing.code == 2 and missing.err.count("\n") == 1
    assert "model.cnn.backbone: needs torchvision, which is not installed; pip install torchvision" in missing.err
