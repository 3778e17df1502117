"""Networks of other packages: the grid that they end in, what of them is kept, learns and is drawn, and what is said of mistakes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from charrnn.config import CNNConfig
from charrnn.errors import UserError
from charrnn.models.backbone import Backbone
from tests.foreign import forget, stand_in

SIZE = 32
RESNET, INCEPTION, NET = "torchvision/tiny_resnet", "torchvision/tiny_inception", "timm/tinynet"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)


def models() -> Any:
    return importlib.import_module("torchvision.models")


def backbone(name: str, size: int = SIZE, **more: Any) -> Backbone:
    torch.manual_seed(0)
    return Backbone(CNNConfig.model_validate({"backbone": name} | more), size)


def pictures(count: int = 3, size: int = SIZE) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def normalised(seen: Tensor, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
    return (seen - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)


@pytest.mark.parametrize("train", [False, True])
def test_the_grid_is_that_before_the_classifier_of_a_normalised_picture(train: bool) -> None:
    made = backbone(RESNET).train(train)
    made.network.drop.p = 0.0  # type: ignore[union-attr]
    assert (made.channels, made.places, made.reduction) == (16, 8, 4)
    plain = models().TinyResNet().train(train)
    plain.load_state_dict(made.network.state_dict(), strict=False)
    plain.drop.p = 0.0
    x = torch.relu(plain.bn1(plain.conv1(normalised(pictures(), MEAN, DEVIATION))))
    torch.testing.assert_close(made(pictures()), plain.layer2(plain.layer1(x)))
    assert not any(name.startswith("network.fc") for name, _ in made.named_parameters())


@pytest.mark.parametrize("name", ["tinynet", "tinyswin", "tinyvit"])
def test_what_timm_calls_features_becomes_a_grid(name: str) -> None:
    made = backbone(f"timm/{name}", weights="none").eval()
    network: Any = made.network
    assert (made.channels, made.places, made.reduction) == (12, 4, 8)
    if name == "tinyvit":
        torch.nn.init.normal_(network.cls_token)
    scale = ((0.5,) * 3, (0.25,) * 3) if name == "tinyswin" else (MEAN, DEVIATION)
    expected = network.stage(torch.relu(network.norm(network.stem(normalised(pictures(), *scale)))))
    if name == "tinyvit":
        expected = expected + network.cls_token.view(12, 1, 1)
    torch.testing.assert_close(made(pictures()), expected)


@pytest.mark.parametrize("name", [RESNET, INCEPTION, NET, "timm/tinyswin", "timm/tinyvit"])
def test_all_that_learns_has_a_gradient_and_all_else_is_kept_with_it(name: str) -> None:
    made = backbone(name)
    learned = {key: weight for key, weight in made.named_parameters() if weight.requires_grad}
    grid = made(pictures(), generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(grid.square().sum(), list(learned.values()))
    assert all(bool(gradient.any()) for gradient in gradients) and len(learned) >= 5
    kept = dict(made.named_parameters())
    assert made.unlearned == kept.keys() - learned.keys() and not list(made.buffers())
    counts = [weight for key, weight in kept.items() if key.endswith("num_batches_tracked")]
    assert counts and all(int(count) == 1 for count in counts)


def test_running_means_are_of_the_batches_seen_and_a_picture_alone_is_seen_as_afterwards() -> None:
    made, by_torch = backbone(NET), nn.BatchNorm2d(12)
    network: Any = made.network
    for seed in range(3):
        x = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
        made(x)
        by_torch(network.stem(normalised(x, MEAN, DEVIATION)))
    torch.testing.assert_close(network.norm.running_mean.detach(), by_torch.running_mean)
    torch.testing.assert_close(network.norm.running_var.detach(), by_torch.running_var)
    before = {name: weight.clone() for name, weight in made.named_parameters()}
    alone = made(pictures(1))
    assert made.training and network.norm.training and all(torch.equal(weight, before[name]) for name, weight in made.named_parameters())
    torch.testing.assert_close(alone, made.eval()(pictures(1)))


def test_running_means_are_not_for_long_what_they_begin_with() -> None:
    made = backbone(RESNET)
    for _ in range(60):
        learning = made(pictures(8), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(made.eval()(pictures(8)).mean(), learning.mean(), atol=0.05, rtol=0.1)


def test_what_is_dropped_follows_from_the_generator_and_from_nothing_else() -> None:
    made = backbone(RESNET)
    with torch.no_grad():
        first, again, other = (made(pictures(8), generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    torch.manual_seed(5)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    made(pictures(8), generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.rand(1), drawn)  # of what others draw


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_under_autocast_it_is_nearly_the_same(precision: torch.dtype) -> None:
    made = backbone(NET)
    exact = made(pictures(8))
    with torch.autocast("cpu", precision):
        rough = made(pictures(8))
    torch.testing.assert_close(rough.float(), exact, atol=0.03, rtol=0.03)
    assert made.network.get_parameter("norm.running_mean").dtype == torch.float32


def test_frozen_it_is_as_it_begins() -> None:
    made = backbone(RESNET, frozen=True).train()
    before = {name: weight.clone() for name, weight in made.named_parameters()}
    assert made.unlearned == before.keys() and not any(weight.requires_grad for weight in made.parameters())
    grid = made(pictures(), generator=torch.Generator())
    assert not grid.requires_grad and all(torch.equal(weight, before[name]) for name, weight in made.named_parameters())
    torch.testing.assert_close(grid, made.eval()(pictures()))


@pytest.mark.parametrize(
    "name, weights, expected",
    [
        (RESNET, "default", "IMAGENET1K_V2"),
        (RESNET, "imagenet1k_v1", "IMAGENET1K_V1"),
        (INCEPTION, "IMAGENET1K_V1", "IMAGENET1K_V1"),
    ],
)
def test_it_begins_with_the_weights_that_are_asked_for_and_only_then(name: str, weights: str, expected: str) -> None:
    made = backbone(name, weights=weights)
    made.check()
    assert models().downloads == []
    made.begin()
    assert models().downloads == [expected]
    theirs = models().get_model(name.partition("/")[2], models().Weights[expected]).state_dict()
    assert all(torch.equal(weight, theirs[key]) for key, weight in made.network.named_parameters())
    assert int(made.network.get_parameter("bn1.num_batches_tracked")) == 7
    assert made.mean.tolist() == pytest.approx((0.5,) * 3 if name == INCEPTION else MEAN)  # which reads -1..1


def test_weights_of_timm_are_a_tag() -> None:
    for made in (backbone(NET, weights="a1_in1k"), backbone(f"{NET}.a1_in1k"), backbone(f"{NET}.a1_in1k", weights="a1_in1k")):
        made.check()
        made.begin()
        assert all(bool((weight == torch.full_like(weight, 0.125)).all()) for weight in made.network.parameters())
        assert (made.mean.tolist(), made.deviation.tolist()) == ([0.5] * 3, [0.25] * 3)
    untrained = backbone(f"{NET}.a1_in1k", weights="none")
    before = [weight.clone() for weight in untrained.parameters()]
    untrained.begin()
    assert all(map(torch.equal, untrained.parameters(), before))


def test_without_numbers_it_has_the_same_names_and_shapes() -> None:
    with torch.device("meta"):
        hollow = dict(backbone(RESNET).named_parameters())
    assert all(weight.is_meta for weight in hollow.values())
    assert {name: weight.shape for name, weight in hollow.items()} == {n: w.shape for n, w in backbone(RESNET).named_parameters()}


def test_without_a_network_it_is_built_and_only_its_beginning_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models(), "offline", True)
    made = backbone(RESNET)
    with pytest.raises(UserError) as found:
        made.begin()
    fact = "its weights cannot be downloaded (<urlopen error Name or service not known>)"
    remedy = "try again with a network, or set weights: none to begin without"
    assert str(found.value) == f"model.cnn.weights: default of {RESNET}: {fact}; {remedy}"


MISTAKES = {
    "unknown": (
        {"backbone": "torchvision/tiny_resnte"},
        "torchvision has no network 'tiny_resnte'; expected one of its 3; did you mean 'tiny_resnet'?",
    ),
    "far": ({"backbone": "timm/zzz"}, "timm has no network 'zzz'; expected one of its 5; `timm`'s list_models() tells them"),
    "no classifier": ({"backbone": "torchvision/tiny_detector"}, "torchvision has no network 'tiny_detector'; expected one of its 3"),
    "weights": (
        {"backbone": RESNET, "weights": "IMAGENET1K_V3"},
        "torchvision has no weights 'IMAGENET1K_V3' for tiny_resnet; expected default, none, IMAGENET1K_V1, IMAGENET1K_V2",
    ),
    "tag": (
        {"backbone": NET, "weights": "tv_in1"},
        "timm has no weights 'tv_in1' for tinynet; expected default, none, a1_in1k, tv_in1k; did you mean 'tv_in1k'?",
    ),
    "tag in name": (
        {"backbone": f"{NET}.tv", "weights": "none"},
        "timm has no weights 'tv' for tinynet; expected default, none, a1_in1k, tv_in1k",
    ),
    "two tags": (
        {"backbone": f"{NET}.a1_in1k", "weights": "tv_in1k"},
        "tv_in1k are asked of timm/tinynet.a1_in1k, which names others; leave out weights, or what stands behind the dot",
    ),
    "none": (
        {"backbone": "timm/tinytest"},
        "timm has no weights 'default' for tinytest, and no others; set weights: none to begin without, or name another backbone",
    ),
    "transformer": (
        {"backbone": "torchvision/tiny_vit", "weights": "none"},
        "torchvision/tiny_vit does not end in a grid of places; name another",
    ),
    "several": ({"backbone": "timm/tinypair", "weights": "none"}, "timm/tinypair does not end in a grid of places; name another"),
    "hub": ({"backbone": "timm/hf-hub.x", "weights": "none"}, "timm has no network 'hf-hub'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_a_line(mistake: str) -> None:
    settings, expected = MISTAKES[mistake]
    with pytest.raises(UserError) as found:
        Backbone(CNNConfig.model_validate(settings), SIZE).check()
    assert expected in str(found.value) and str(found.value).startswith(("model.cnn.backbone: ", "model.cnn.weights: "))


def test_pictures_that_it_cannot_read_are_refused_by_their_size() -> None:
    with pytest.raises(UserError, match=r"timm/tinyvit cannot read pictures of 48 × 48 pixels \(Input height \(48\) doesn't match"):
        backbone("timm/tinyvit", 48)
    with pytest.raises(UserError, match=r"of 8 × 8 pixels it makes \(12, 1, 1\); raise data\.images\.size, or name another"):
        backbone(NET, 8)


def nothing_installed(folder: Path, patch: pytest.MonkeyPatch) -> None:
    forget(patch)
    patch.setattr(sys, "path", [str(folder)])
    importlib.invalidate_caches()


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_package_that_is_not_installed_is_asked_for(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_installed(tmp_path, monkeypatch)
    with pytest.raises(UserError) as found:
        backbone(f"{package}/resnet18")
    assert str(found.value) == f"model.cnn.backbone: needs {package}, which is not installed; pip install {package}"


@pytest.mark.parametrize(
    "fault, expected",
    [
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            r"\(operator torchvision::nms does not exist\); install the timm that is made for torch \d",
        ),
        ("import torchvision", r"\(No module named 'torchvision'\); pip install torchvision$"),
    ],
)
def test_a_package_that_cannot_be_imported_is_told_of(fault: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_installed(tmp_path, monkeypatch)
    (tmp_path / "timm.py").write_text(fault)
    with pytest.raises(UserError, match=f"^model.cnn.backbone: timm is installed and cannot be imported {expected}"):
        backbone(NET)
