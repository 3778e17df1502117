"""Model files before their weights are read: where they lie, and what they say of themselves. Without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from charrnn import __version__
from charrnn.errors import CheckpointError, UserError, did_you_mean, short
from charrnn.paths import user_path

FORMAT = "charrnn"
FORMAT_VERSION = 1  # of model files; a reader refuses what is newer than itself
MAX_HEADER = 64 << 20  # bytes; a vocabulary of all of Unicode needs a quarter of it
DIGEST = 16  # bytes of a checksum
UNSUMMED = "0" * (2 * DIGEST)  # what stands for a checksum while it is computed
PIECE = 1 << 20  # bytes of a file that are summed at once
RUNS = Path("runs")


class ForeignError(CheckpointError):
    """A .safetensors file that holds something else than a model of ours."""


class Header(NamedTuple):
    """Of a file that charrnn wrote, or that says so. Only what `metadata` holds has been looked at: what `tensors` claims has not."""

    metadata: dict[str, str]
    tensors: dict[str, Any]  # by name: dtype, shape, data_offsets
    start: int  # bytes before the tensors
    size: int  # bytes of the file
    raw: bytes  # those before the tensors, as they lie there

    def is_sound(self, tensors: Iterable[bytes | memoryview]) -> bool:
        """Whether the checksum is that of the header and of these bytes behind it. Files of before there were checksums have none."""
        claimed = self.metadata.get("checksum")
        return claimed is None or claimed == checksum(self.raw.replace(claimed.encode(), UNSUMMED.encode(), 1), tensors)


def read_header(path: Path) -> Header:
    """The header of a model file, read by hand so that no claim in it is believed before it is checked. Raises CheckpointError."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(8)
            if len(head) < 8:
                raise CheckpointError(f"{path}: {size} bytes long; expected a .safetensors file that charrnn wrote")
            (length,) = struct.unpack("<Q", head)
            if length > size - 8 or length > MAX_HEADER:
                # Only now: a sound header may be as long as these bytes say, but read as a length a pickle's are enormous.
                if head.startswith((b"PK", b"\x80")):
                    expected = "best.safetensors beside it" if path.name == "last.state.pt" else "a .safetensors file that charrnn wrote"
                    raise CheckpointError(f"{path}: a pickle file, which could run code and is not opened as a model; expected {expected}")
                fact = f"its header claims {length} bytes and the file has {size}"
                raise CheckpointError(f"{path}: {fact}; it is cut off or not a .safetensors file, so copy it again")
            text = file.read(length)
            header = json.loads(text)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; expected a model that charrnn train wrote") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: its header is not JSON; it is damaged or not a .safetensors file") from None
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT or not all(isinstance(v, str) for v in metadata.values()):
        expected = "best.safetensors or last.safetensors of a run"
        raise ForeignError(f"{path}: a .safetensors file, but not one that charrnn wrote; expected {expected}")
    version = str(metadata.get("format_version"))
    if not version.isdecimal() or len(version) > 9 or int(version) > FORMAT_VERSION:  # int() refuses thousands of digits
        raise CheckpointError(
            f"{path}: written by charrnn {short(metadata.get('charrnn_version'))} in format {short(version)}, and charrnn "
            f"{__version__} reads formats up to {FORMAT_VERSION}; upgrade charrnn"
        )
    return Header(metadata, {name: entry for name, entry in header.items() if name != "__metadata__"}, 8 + length, size, head + text)


def checksum(header: bytes, tensors: Iterable[bytes | memoryview]) -> str:
    """Of a model file: BLAKE2b of all its bytes, with zeros where the checksum stands; hexadecimal."""
    digest = blake2b(header, digest_size=DIGEST)
    for piece in tensors:
        digest.update(piece)
    return digest.hexdigest()


def with_checksum(payload: bytes) -> tuple[bytes, memoryview]:
    """Header and tensors of a model file, with the checksum in the place that its metadata holds for it: `checksum`, all zeros."""
    (length,) = struct.unpack("<Q", payload[:8])
    header, tensors = payload[: 8 + length], memoryview(payload)[8 + length :]
    place = f'"checksum":"{UNSUMMED}"'.encode()
    assert place in header  # as safetensors writes JSON
    return header.replace(place, f'"checksum":"{checksum(header, [tensors])}"'.encode(), 1), tensors


def check_content(path: Path, header: Header) -> None:
    """Raises CheckpointError where a file is not what it was when its checksum was taken."""
    try:
        with open(path, "rb") as file:
            file.seek(header.start)
            sound = header.is_sound(iter(lambda: file.read(PIECE), b""))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not sound:
        raise damaged_content(path)


def damaged_content(path: Path) -> CheckpointError:
    """What to raise of a file whose checksum is not that of its content."""
    return CheckpointError(f"{path}: damaged: its content is not what its checksum says; copy it again, or train anew")


def find_model(model: str | None) -> Path:
    """The model file that a run directory, a file name, or nothing (the newest run under ./runs) stands for. Raises UserError."""
    path = None if model is None else user_path(model, "model")
    try:
        return _newest() if path is None else _found(path)
    except OSError as error:
        place = error.filename or path or RUNS
        raise UserError(f"{place}: cannot be read: {error.strerror or error}; name a run or model file that you may read") from None


def is_model(name: str) -> bool:
    """Whether a name is that of a model file, or of a run directory that has one: not of what a model is to read."""
    path = user_path(name, "model")
    return path.suffix == ".safetensors" or (path.is_dir() and _model_of(path) is not None)


def is_foreign(name: str) -> bool:
    """Whether a name is that of a whole .safetensors file which holds something else than a model of ours."""
    path = user_path(name, "model")
    try:
        read_header(path)
    except ForeignError:
        return True
    except CheckpointError:  # told of where it is loaded
        return False
    return False


def _newest() -> Path:
    candidates = [found for run in RUNS.glob("*") if (found := _model_of(run))]
    if not candidates:
        looked = f"no model is named, and no run under {RUNS.resolve()} has one (best.safetensors or last.safetensors in a directory of it)"
        raise UserError(f"{looked}; name a run directory or train one first")
    return max(candidates, key=lambda path: path.stat().st_mtime)


def _found(path: Path) -> Path:
    if path.is_dir():
        if found := _model_of(path):
            return found
        raise UserError(f"{path}: the directory holds neither best.safetensors nor last.safetensors; name a run that has trained")
    if path.exists():
        return path
    raise UserError(
        f"{path}: no such run or model file{elsewhere(path, '.safetensors') or '; name a run directory or a .safetensors file'}"
    )


def elsewhere(path: Path, ending: str) -> str:
    """The end of a message about a run or file that is not there: `; did you mean 'runs/x'?`, or nothing.

    What it names is a directory, or a file of that ending: nothing else could stand there.
    """
    if (in_runs := RUNS / path).exists():
        return f"; did you mean {str(in_runs)!r}?"
    near = [entry for folder in (RUNS, path.parent) if folder.is_dir() for entry in folder.iterdir()]
    return did_you_mean(str(path), [str(entry) for entry in near if entry.suffix == ending or entry.is_dir()])


def _model_of(run: Path) -> Path | None:
    return next((run / name for name in ("best.safetensors", "last.safetensors") if (run / name).is_file()), None)
