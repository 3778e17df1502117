"""Model files, whole and plain, and the state that a run resumes from. Nothing read here can run code.

A model file is one `.safetensors`: weights by name, and in its metadata the configuration, the vocabulary, the step, the
metrics and a checksum. A state file is what `torch.load(weights_only=True)` accepts, tensors and plain types, and behind it a checksum.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
import yaml
from safetensors import SafetensorError
from torch import Tensor, nn

from charrnn import __version__
from charrnn.atomic import write_atomically
from charrnn.config import Config, read_config
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import CheckpointError, ConfigError, first_line, short
from charrnn.model_file import DIGEST, FORMAT, FORMAT_VERSION, PIECE, UNSUMMED, check_content, checksum, read_header, with_checksum
from charrnn.models import Architecture, build_architecture

STATE_VERSION = 2  # from 2 on there is a checksum
SEAL = b"\ncharrnn blake2b "  # begins what stands behind a state: this, the checksum in hexadecimal, and a line end
SEAL_SIZE = len(SEAL) + 2 * DIGEST + 1


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
        "checksum": UNSUMMED,
    }
    if labels:
        metadata["labels"] = json.dumps(list(labels), ensure_ascii=False)
    write_atomically(path, with_checksum(safetensors.torch.save(weights, metadata)))


def load_model(path: Path | str, device: str = "cpu") -> Loaded:
    """Read a model file that nobody vouches for. Raises CheckpointError, one line, where it is not whole or not ours."""
    path = Path(path)
    header = read_header(path)
    check_content(path, header)
    metadata = header.metadata
    try:
        weights = safetensors.torch.load_file(path, device=device)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged: {first_line(error)}; copy it again, or train anew") from None
    try:
        config = read_config(metadata["config"], "its config")
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
        raise CheckpointError(f"{path}: damaged: its metadata cannot be read: {first_line(error)}; copy it again, or train anew") from None
    _check_weights(path, weights, config, vocabulary, labels)
    return Loaded(weights, config, vocabulary, step, metrics, path, labels)


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


def save_state(path: Path, state: dict[str, Any], before: Path | None = None) -> None:
    """Write what a run resumes from: tensors and plain types. Raises WriteError.

    `before`: the name that the state before it is kept under.
    """
    buffer = io.BytesIO()
    torch.save({"state_version": STATE_VERSION, "charrnn_version": __version__, **state}, buffer)
    content = buffer.getbuffer()
    write_atomically(path, (content, SEAL + checksum(b"", [content]).encode() + b"\n"), before=before)


class UnfitState(CheckpointError):
    """A state that no run can go on from: its path, the fact, and what is left to do."""

    def __init__(self, path: Path, fact: str, remedy: str | None = None) -> None:
        last = path.with_name("last.safetensors")
        self.path, self.fact = path, fact
        self.remedy = remedy or f"take the weights only with --init-from {last}, or start again with --overwrite"
        super().__init__(f"{path}: {fact}; {self.remedy}")


def load_state(path: Path) -> dict[str, Any]:
    """Read what save_state wrote, on the CPU. Raises UnfitState where it is not whole or not ours."""
    try:
        with open(path, "rb") as file:
            sealed = _check_seal(path, file)
            _check_records(path, file)
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UnfitState(path, f"cannot be read: {error.strerror or error}") from None
    except UnfitState:
        raise
    except Exception as error:
        raise UnfitState(path, f"damaged: {first_line(error)[:120]}") from None
    version = state.get("state_version") if isinstance(state, dict) else None
    if not isinstance(version, int):
        raise UnfitState(path, "not the state of a charrnn run")
    if version > STATE_VERSION:
        fact = f"written by charrnn {short(state.get('charrnn_version'))} in format {short(version)}"
        raise UnfitState(path, f"{fact}, and charrnn {__version__} reads formats up to {STATE_VERSION}", "upgrade charrnn to resume")
    if version > 1 and not sealed:
        raise UnfitState(path, "damaged: its checksum is missing")
    return dict(state)


def _check_records(path: Path, file: BinaryIO) -> None:
    """Raises UnfitState where the file is not an archive as torch.save makes it: older pickles, and what unpacks to more than it is."""
    size = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
    if any(record.compress_type != zipfile.ZIP_STORED for record in records) or sum(record.file_size for record in records) > size:
        raise UnfitState(path, "damaged: its records are not as they were written")


def _check_seal(path: Path, file: BinaryIO) -> bool:
    """Whether there is a checksum. Raises UnfitState where it is not that of what stands before it."""
    size = file.seek(0, io.SEEK_END) - SEAL_SIZE
    file.seek(max(0, size))
    seal = file.read()
    if size < 0 or not seal.startswith(SEAL):
        return False
    file.seek(0)
    pieces = (file.read(min(PIECE, size - at)) for at in range(0, size, PIECE))
    if seal != SEAL + checksum(b"", pieces).encode() + b"\n":
        raise UnfitState(path, "damaged: its content is not what its checksum says")
    return True
