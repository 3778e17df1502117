"""YAML and `--set` to frozen, typed models. Every mistake in a configuration dies here, with its place named.

Defaults < YAML < `--set a.b=c`. Nothing below this module sees a dictionary of settings, and nothing changes one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator

from charrnn.errors import ConfigError, did_you_mean

Fraction = Annotated[float, Field(ge=0, lt=1)]
DropoutPlace = Literal["input", "between_layers", "output"]

# What other char-RNN programs call the same thing: old habits work.
ALIASES = {
    "rnn_size": "model.hidden_size",
    "lstm_size": "model.hidden_size",
    "num_units": "model.hidden_size",
    "embedding_dim": "model.embedding_size",
    "seq_length": "train.tbptt_window",
    "num_steps": "train.tbptt_window",
    "num_seqs": "train.batch_size",
    "keep_prob": "",
}


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class VocabularyConfig(Section):
    max_size: PositiveInt | None = None  # keep the most frequent characters
    min_count: PositiveInt = 1  # drop characters seen fewer times


class DataConfig(Section):
    source: Literal["files", "python-stdlib"] = "files"  # python-stdlib: the running Python's own library, on every machine
    path: str | list[str] | None = None  # file, list, glob, directory, any of them .gz; relative to where the command runs
    encoding: str = "utf-8"
    documents: Literal["none", "lines", "blank_lines", "files"] = "none"  # none: one stream of text
    val_fraction: Fraction = 0.1  # the end of a stream; documents by seed
    test_fraction: Fraction = 0.0
    vocabulary: VocabularyConfig = VocabularyConfig()
    cache: str = "~/.cache/charrnn"  # encoded text, by content hash

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        if self.source == "files" and not self.path:
            raise ValueError("path is missing; name the text to learn from (a file, a list, a glob or a directory), or set source: python-stdlib")
        if self.source != "files" and self.path:
            raise ValueError(f"path {self.path!r} is given together with source: {self.source}; leave one of them out")
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(f"val_fraction {self.val_fraction} and test_fraction {self.test_fraction} leave nothing to train on; together they must stay below 1")
        return self


class DropoutConfig(Section):
    embedding: Fraction = 0.0  # whole characters of the embedding (Gal & Ghahramani 2016)
    input: Fraction = 0.0  # what enters the first layer
    between_layers: Fraction = 0.0
    output: Fraction = 0.0  # what enters the head
    weight_hh: Fraction = 0.0  # DropConnect on the recurrent weights (Merity et al. 2018)
    locked: bool | list[DropoutPlace] = False  # one mask for all steps of a window (variational), everywhere or at these places

    def is_locked(self, place: DropoutPlace) -> bool:
        return self.locked if isinstance(self.locked, bool) else place in self.locked


class ModelConfig(Section):
    cell: Literal["rnn_tanh", "rnn_relu", "lstm", "gru"] = "lstm"
    embedding_size: PositiveInt = 64
    hidden_size: PositiveInt = 256  # units per layer
    num_layers: PositiveInt = 1
    bidirectional: bool = False
    tied_embeddings: bool = False  # head and embedding share one matrix
    layer_norm: bool = False  # on each layer's outputs
    backend: Literal["auto", "reference", "explicit", "fused"] = "auto"
    dropout: DropoutConfig = DropoutConfig()

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.tied_embeddings and self.embedding_size != self.hidden_size:
            raise ValueError(
                f"tied_embeddings needs embedding_size ({self.embedding_size}) equal to hidden_size ({self.hidden_size}); "
                f"set embedding_size: {self.hidden_size} or tied_embeddings: false"
            )
        return self


class TrainConfig(Section):
    batch_size: PositiveInt = 32  # parallel streams
    tbptt_window: PositiveInt = 128  # steps through which gradients flow
    max_steps: PositiveInt | None = None  # the run ends at the first of the three limits
    max_epochs: PositiveFloat | None = None
    max_minutes: PositiveFloat | None = None
    optimizer: Literal["adamw", "adam", "rmsprop", "sgd"] = "adamw"
    learning_rate: PositiveFloat = 3e-3
    momentum: Fraction = 0.9  # sgd's, and beta1 of adam and adamw
    beta2: Fraction = 0.99
    weight_decay: Annotated[float, Field(ge=0)] = 0.0  # on matrices only
    schedule: Literal["constant", "cosine", "linear", "plateau"] = "cosine"  # over the largest fraction of the limits used up
    warmup_steps: NonNegativeInt = 50
    min_learning_rate: Fraction = 0.02  # where the schedule ends, as a share of learning_rate
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5  # schedule: plateau multiplies by this …
    plateau_patience: PositiveInt = 2  # … after so many evaluations without a better value
    max_grad_norm: PositiveFloat = 1.0
    accumulate: PositiveInt = 1  # windows whose gradients make one step
    label_smoothing: Fraction = 0.0
    ema_decay: Fraction = 0.0  # weight averaging; the averaged weights are what is evaluated and saved. 0 is off
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    patience: PositiveInt | None = None  # stop after so many evaluations without a better value
    evaluate_every: PositiveInt = 500  # steps
    save_every: PositiveInt = 500
    log_every: PositiveInt = 50

    @model_validator(mode="after")
    def _ends(self) -> TrainConfig:
        if self.max_steps is None and self.max_epochs is None and self.max_minutes is None:
            raise ValueError("the run has no end; set at least one of max_steps, max_epochs, max_minutes")
        return self


class Config(Section):
    task: Literal["lm"] = "lm"
    run: str = "runs/default"  # the run directory
    seed: NonNegativeInt = 1
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    data: DataConfig
    model: ModelConfig = ModelConfig()
    train: TrainConfig

    @model_validator(mode="after")
    def _honest(self) -> Config:
        if self.model.bidirectional:
            raise ValueError(
                "model.bidirectional: a language model that reads from both sides has read its own answer; "
                "set bidirectional: false (guessing from both sides is the task `fill`)"
            )
        return self

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-3` is the number everyone means, and a key given twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if isinstance(key, str) and key in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: key {key!r} stands twice in one section; keep one of them")
            seen.add(key if isinstance(key, str) else repr(key))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9_]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply `a.b=c` overrides. Raises ConfigError, one line, naming file and key."""
    path = Path(path)
    try:
        raw = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file; `ls configs` shows those that ship{_near(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a directory; expected a YAML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text at byte {error.start}; save the config as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        settings = parse_yaml(raw)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"{path}: {where}not valid YAML: {problem}; check indentation and quotes there") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}; check the values there") from None
    if settings is None:
        settings = {}
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: holds a {type(settings).__name__}; expected sections `data:`, `model:`, `train:` with keys")
    return build_config(settings, str(path), overrides)


def build_config(settings: dict[str, Any], place: str, overrides: Sequence[str] = ()) -> Config:
    """Validate settings. `place` is what an error message blames. Raises ConfigError."""
    settings = _move_aliases(settings, place)
    for override in overrides:
        _apply(settings, override)
    for section in ("data", "train"):
        settings.setdefault(section, {})
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(_explain(error, place, settings)) from None


def _near(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return ""
    return did_you_mean(path.name, names)


def _move_aliases(settings: dict[str, Any], place: str) -> dict[str, Any]:
    moved: dict[str, Any] = {k: dict(v) if isinstance(v, dict) else v for k, v in settings.items()}
    for section, values in [("", moved), *((k, v) for k, v in moved.items() if isinstance(v, dict))]:
        for old in [key for key in values if isinstance(key, str) and key in ALIASES]:
            if not (new := ALIASES[old]):
                raise ConfigError(f"{place}: {old!r} is not used here; set model.dropout.output to 1 - {old}")
            target_section, target = new.split(".")
            into = moved.setdefault(target_section, {})
            if not isinstance(into, dict):
                raise ConfigError(f"{place}: {target_section}: holds {into!r}; expected a section with keys")
            if target in into:
                raise ConfigError(f"{place}: {section or 'top level'}: {old!r} is another name of {new}, which is given too; keep one")
            into[target] = values.pop(old)
    return moved


def _apply(settings: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    key = ALIASES.get(key.strip().replace("-", "_"), key.strip()) or key.strip()
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: expected KEY=VALUE, for example --set train.max_minutes=3")
    *sections, leaf = key.split(".")
    here: Any = settings
    for name in sections:
        here = here.setdefault(name, {})
        if not isinstance(here, dict):
            raise ConfigError(f"--set {override!r}: {name!r} is a value, not a section")
    try:
        here[leaf] = parse_yaml(value)
    except (yaml.YAMLError, ConfigError, ValueError):
        raise ConfigError(f"--set {override!r}: {value!r} is not a value; quote it if it is text") from None


def _explain(error: ValidationError, place: str, settings: dict[str, Any]) -> str:
    """The first complaint, as one line; the number of the others."""
    errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = errors[0]
    location = [str(part) for part in first["loc"]]
    section, key = ".".join(location[:-1]), location[-1] if location else ""
    where = f"{place}: " + (f"{section}: " if section else "")
    if first["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        message = f"{where}unknown key {key!r}{did_you_mean(key, known) or '; known are ' + ', '.join(known)}"
        elsewhere = [name for name, sub in _sections() if key in sub and name != section]
        if elsewhere and "did you mean" not in message:
            message = f"{where}unknown key {key!r}; it belongs in section {elsewhere[0]!r}"
    elif first["type"] == "value_error":
        message = f"{place}: {'.'.join(location) + ': ' if location else ''}{first['ctx']['error']}"
    else:
        # A union lists the branch it tried last; the key is what the user wrote.
        keys = [part for part in location if part in _all_keys()]
        message = f"{place}: {'.'.join(keys)}: {first['input']!r} is not valid; {_expectation(first)}"
    others = len(errors) - 1
    return message + (f" (and {others} more)" if others else "")


def _expectation(error: Any) -> str:
    message = str(error["msg"])
    return "expected " + message.removeprefix("Input should be ").replace("a valid ", "a ") if message.startswith("Input should be ") else message


def _model_of(annotation: Any) -> type[Section] | None:
    candidates = get_args(annotation) if get_origin(annotation) is Union else (annotation,)
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, Section)), None)


def _fields_at(location: Sequence[str]) -> list[str]:
    model: type[Section] | None = Config
    for name in location:
        field = model.model_fields.get(name) if model else None
        model = _model_of(field.annotation) if field else None
    return list(model.model_fields) if model else []


def _sections() -> list[tuple[str, list[str]]]:
    return [(name, _fields_at([name])) for name in ("data", "model", "train")]


def _all_keys() -> set[str]:
    nested = {key for parent in (["data", "vocabulary"], ["model", "dropout"]) for key in _fields_at(parent)}
    return set(Config.model_fields) | {key for _, keys in _sections() for key in keys} | nested
