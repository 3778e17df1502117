"""What stands for timm where it is not installed: small networks behind the functions of its own that charrnn calls."""

from __future__ import annotations

import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

TAGS = {"tinynet": ("a1_in1k", "tv_in1k"), "tinyswin": ("ms_in22k",), "tinyvit": ("augreg",), "tinypair": (), "tinytest": ()}


class TinyNet(nn.Module):
    """`kind`: what its features look like: a grid, one with channels last, or tokens behind one of the whole picture."""

    def __init__(self, kind: str, cfg: dict[str, Any]) -> None:
        super().__init__()
        self.kind, self.pretrained_cfg, self.num_features = kind, cfg, 12
        self.stem = nn.Conv2d(3, 12, 4, 4)
        self.norm = nn.BatchNorm2d(12)
        self.stage = nn.Conv2d(12, 12, 3, 2, 1)
        self.head = nn.ModuleDict({"norm": nn.LayerNorm(12)})  # of the pooled vector: no part of the features
        if kind == "tinyvit":
            self.num_prefix_tokens = 1
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 12))

    def forward_features(self, x: Tensor) -> Any:
        if self.kind == "tinyvit":
            assert x.shape[-1] == 32, f"Input height ({x.shape[-1]}) doesn't match model (32)."
        x = self.stage(torch.relu(self.norm(self.stem(x))))
        if self.kind == "tinyswin":
            return x.permute(0, 2, 3, 1)
        if self.kind == "tinyvit":
            tokens = x.flatten(2).transpose(1, 2)
            return torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], 1) + self.cls_token
        return [x, x] if self.kind == "tinypair" else x


def list_models(filter: str = "", pretrained: bool = False) -> list[str]:
    names = [f"{name}.{tag}" for name, tags in TAGS.items() for tag in tags] if pretrained else list(TAGS)
    return fnmatch.filter(names, filter or "*")


def create_model(model_name: str, pretrained: bool = False, num_classes: int = 1000) -> nn.Module:
    assert num_classes == 0
    name, _, tag = model_name.partition(".")
    if tag and tag not in TAGS[name]:
        raise RuntimeError(f"Invalid pretrained tag ({tag}) for {name}.")
    cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)} if tag == "a1_in1k" or name == "tinyswin" else {}
    network = TinyNet(name, cfg)
    if pretrained:
        network.load_state_dict({key: torch.full_like(value, 0.125) for key, value in network.state_dict().items()})
    return network
