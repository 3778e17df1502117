"""Networks with the parts and the habits that torchvision's have."""

from __future__ import annotations

import enum
import sys
from types import ModuleType
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

offline = False  # set by a test: nothing can be downloaded then
downloads: list[str] = []


class TinyResNet(nn.Module):
    """Batch normalisation, dropout on whole channels, a grid of a quarter of the sides, and a classifier behind its mean."""

    def __init__(self, transform_input: bool | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.drop = nn.Dropout2d(0.1)
        self.layer2 = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16, momentum=0.0003), nn.ReLU(inplace=True))
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(64, 10)
        if transform_input is not None:
            self.transform_input = transform_input
            self.aux1: nn.Module | None = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Any:
        assert not getattr(self, "transform_input", False)  # who reads the grid alone has seen to it
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.drop(self.layer1(x)))
        answer = self.fc(torch.flatten(self.avgpool(x), 1))
        aux: nn.Module | None = getattr(self, "aux1", None)
        return answer if aux is None or not self.training else (answer, aux(x.mean((2, 3))))


class TinyTransformer(nn.Module):
    """Patches, which are a grid, and a layer that mixes them, which gives none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_proj = nn.Conv2d(3, 8, 8, 8)
        self.encoder = nn.Linear(8, 8)
        self.heads = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.heads(self.encoder(self.conv_proj(x).flatten(2).transpose(1, 2)).mean(1))
        return answer


class Weights(enum.Enum):
    IMAGENET1K_V1 = 1
    IMAGENET1K_V2 = 2
    DEFAULT = 2


class NoWeights(enum.Enum):
    """Of a network that nobody has trained."""


NETWORKS = ("tiny_inception", "tiny_resnet", "tiny_vit")


def list_models(module: ModuleType | None = None) -> list[str]:
    return [*NETWORKS, *([] if module is sys.modules[__name__] else ["tiny_detector"])]


def get_model_weights(name: str) -> type[enum.Enum]:
    return NoWeights if name == "tiny_vit" else Weights


def get_model(name: str, weights: Weights | None = None) -> nn.Module:
    if name == "tiny_vit":
        return TinyTransformer()
    network = TinyResNet(None if name == "tiny_resnet" else weights is not None)
    if weights is not None:
        network.load_state_dict(download(network, weights.name))
    return network


def download(network: nn.Module, name: str) -> dict[str, Tensor]:
    """What a server would send: numbers that follow from the weights' name."""
    if offline:
        raise URLError("Name or service not known")
    downloads.append(name)
    generator = torch.Generator().manual_seed(int.from_bytes(name.encode()[-4:], "little"))
    drawn = {key: torch.rand(value.shape, generator=generator) / 4 for key, value in network.state_dict().items()}
    return {key: value if drawn[key].dim() else torch.tensor(7) for key, value in drawn.items()}
