"""Model files, whole and plain, and the state that a run resumes from. Nothing read here can run code.

A model file is one `.safetensors`: weights by name, and in its metadata the configuration, the vocabulary, the step and
the metrics. A state file is what `torch.load(weights_only=True)` accepts: tensors and plain types.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from safetensors import SafetensorError
from torch import Tensor, nn

from charrnn import __version__
from charrnn.atomic import write_atomically
from charrnn.config import Config, build_config
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import CheckpointError, ConfigError, short
from charrnn.model_file import FORMAT, FORMAT_VERSION, read_header
from charrnn.models import Architecture, build_architecture
from charrnn.plain_yaml import parse_yaml

STATE_VERSION = 1


@dataclass(frozen=True)
class Loaded:
    """A model file, checked: the weights have the names and shapes that its config asks for."""

    weights: dict[str, Tensor]
    config: Config
    vocabulary: Vocabulary
    step: int
    metrics: dict[str, float]
    path: Path
    labels: tuple[str, ...] = ()  # what it answers with; () for characters

    @property
    def separator(self) -> str:
        """What is written between two documents."""
        return self.config.data.separator


def save_model(
    path: Path,
    model: nn.Module,
    config: Config,
    vocabulary: Vocabulary,
    step: int,
    metrics: dict[str, float],
    labels: Sequence[str] = (),
) -> None:
    """Write a model file. A matrix that two layers share is stored once. Raises WriteError."""
    weights = {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "charrnn_version": __version__,
        "config": config.to_yaml(),
        "vocabulary": vocabulary.to_json(),
        "step": str(step),
        "metrics": json.dumps(metrics),
    }
    if labels:
        metadata["labels"] = json.dumps(list(labels), ensure_ascii=False)
    write_atomically(path, safetensors.torch.save(weights, metadata))


def load_model(path: Path | str, device: str = "cpu") -> Loaded:
    """Read a model file that nobody vouches for. Raises CheckpointError, one line, where it is not whole or not ours."""
    path = Path(path)
    metadata = read_header(path).metadata
    try:
        weights = safetensors.torch.load_file(path, device=device)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged: {_first_line(error)}; copy it again, or train anew") from None
    try:
        config = build_config(_as_settings(metadata["config"]), "its config")
        vocabulary = Vocabulary.from_json(metadata["vocabulary"])
        labels = _as_labels(metadata.get("labels", "[]"), config)
        step = int(metadata["step"])
        metrics = {str(name): float(value) for name, value in json.loads(metadata["metrics"]).items()}
        if not 0 <= step < 1 << 63:
            raise ValueError(f"step {short(step)} is none")
        if strangers := [name for name in metrics if not name.isidentifier()]:
            raise ValueError(f"{short(strangers[0])} is no name of a metric")
    except KeyError as missing:
        raise CheckpointError(f"{path}: damaged: its metadata has no {missing}; copy it again, or train anew") from None
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from None
    except (ValueError, TypeError, ArithmeticError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: damaged: its metadata cannot be read: {_first_line(error)}; copy it again, or train anew") from None
    _check_weights(path, weights, config, vocabulary, labels)
    return Loaded(weights, config, vocabulary, step, metrics, path, labels)


def _as_settings(text: str) -> dict[str, Any]:
    settings = parse_yaml(text)
    if not isinstance(settings, dict):
        raise CheckpointError("its config is not a set of sections")
    return settings


def _as_labels(text: str, config: Config) -> tuple[str, ...]:
    found = json.loads(text)
    if not (isinstance(found, list) and all(isinstance(label, str) for label in found) and len(set(found)) == len(found)):
        raise CheckpointError("its labels are damaged; expected the distinct names that training wrote")
    if bool(found) != config.is_labelled:
        raise CheckpointError(f"it has {len(found)} labels, and its config is one of task {config.task}")
    return tuple(found)


def _check_weights(path: Path, weights: dict[str, Tensor], config: Config, vocabulary: Vocabulary, labels: tuple[str, ...]) -> None:
    # A layer has at least two tensors: without this, a claim of 10^9 layers would be built before it is refused.
    asked = max(config.model.num_layers, config.model.decoder.num_layers)
    if asked > len(weights):
        raise CheckpointError(f"{path}: damaged: its config asks for {asked} layers and it holds {len(weights)} tensors")
    with torch.device("meta"):
        expected = dict(build_architecture(config, len(vocabulary), len(labels) or None).named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in expected.items()}
    check_shapes({name: tuple(weight.shape) for name, weight in weights.items()}, shapes, f"{path}: damaged: ")
    for name, weight in weights.items():
        if weight.is_floating_point() != expected[name].is_floating_point():
            kind = "floating point" if expected[name].is_floating_point() else "whole numbers"
            raise CheckpointError(f"{path}: damaged: tensor {name!r} is {weight.dtype}; expected {kind}")


def check_shapes(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], place: str) -> None:
    """Raises CheckpointError naming the first tensor that is missing, unexpected or of another shape."""
    for name, shape in expected.items():
        if name not in found:
            raise CheckpointError(f"{place}tensor {name!r} is missing; expected shape {shape}")
        if found[name] != shape:
            raise CheckpointError(f"{place}tensor {name!r} has shape {short(found[name])}; the config asks for {shape}")
    if strangers := sorted(found.keys() - expected.keys()):
        raise CheckpointError(f"{place}tensor {short(strangers[0])} has no place in the model that the config describes")


def build_model(loaded: Loaded) -> Architecture:
    """The model of a file on the device its weights are on, ready to be used: eval mode, no gradients."""
    device = next(iter(loaded.weights.values())).device
    with torch.random.fork_rng(devices=[]):  # the random weights it begins with are nobody's business
        model = build_architecture(loaded.config, len(loaded.vocabulary), len(loaded.labels) or None).to(device)
    copy_weights(loaded.weights, model)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def copy_weights(weights: dict[str, Tensor], model: nn.Module) -> None:
    """Copy weights of the same names and shapes into a model."""
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write what a run resumes from: tensors and plain types. Raises WriteError."""
    buffer = io.BytesIO()
    torch.save({"state_version": STATE_VERSION, "charrnn_version": __version__, **state}, buffer)
    write_atomically(path, buffer.getvalue())


def unfit_state(path: Path, fact: str) -> CheckpointError:
    """What to raise of a state that no run can go on from."""
    return CheckpointError(f"{path}: does not fit this run: {fact}; {_instead_of(path)}")


def _instead_of(state: Path) -> str:
    return f"take the weights only with --init-from {state.with_name('last.safetensors')}, or start again with --overwrite"


def load_state(path: Path) -> dict[str, Any]:
    """Read what save_state wrote, on the CPU. Raises CheckpointError where it is not whole or not ours."""
    remedy = _instead_of(path)
    try:
        with open(path, "rb") as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}; {remedy}") from None
    except Exception as error:
        raise CheckpointError(f"{path}: damaged: {_first_line(error)[:120]}; {remedy}") from None
    version = state.get("state_version") if isinstance(state, dict) else None
    if not isinstance(version, int):
        raise CheckpointError(f"{path}: not the state of a charrnn run; {remedy}")
    if version > STATE_VERSION:
        raise CheckpointError(
            f"{path}: written by charrnn {short(state.get('charrnn_version'))} in format {short(version)}, and charrnn "
            f"{__version__} reads formats up to {STATE_VERSION}; upgrade charrnn to resume"
        )
    return dict(state)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
