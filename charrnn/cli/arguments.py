"""What a person names to several commands, and what it stands for: a model, a device, keys of the configuration, a text."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from charrnn.cli.output import progress_bar, tell, warn
from charrnn.errors import DataError, Faults, UserError, counted, printable

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from charrnn.checkpoint import Loaded
    from charrnn.config import Config, DataConfig
    from charrnn.data.files import Source
    from charrnn.data.formats import Reading
    from charrnn.tasks.task import Task

Model = Annotated[str | None, typer.Argument(help="a run directory or a .safetensors file; left out, the newest run", show_default=False)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="set a key of the configuration; may be repeated")]


WIDEST = 1000  # of a beam, as decoding.beam_width has it
# The command for a text of one's own with a model of a task. The other tasks' commands are called as the tasks are.
OWN_TEXT = {"lm": "sample"}


def named(model: str | None) -> Path:
    """The file of the model that a person names, or of the newest, and then it is said which. Raises UserError where there is none."""
    from charrnn.model_file import find_model

    path = find_model(model)
    if model is None:
        typer.echo(f"charrnn: no model is named, so the newest run is taken: {printable(str(path))}", err=True)
    return path


def load(model: str | Path | None, device: str, task: str | None = None, command: str | None = None) -> tuple[Loaded, nn.Module]:
    """The model that a person names, or the newest, or the one of a file that was found already.

    Raises UserError where it is not of `task`, the only one that `command` can do; None: of any.
    """
    from charrnn.checkpoint import build_model, load_model
    from charrnn.device import resolve_device

    where = resolve_device(device)
    loaded = load_model(named(model) if model is None or isinstance(model, str) else model, str(where))
    own = loaded.config.task
    if task is not None and own != task:
        needs = f"charrnn {command or OWN_TEXT.get(task, task)} needs one of task {task}"
        raise UserError(f"{loaded.path}: a model of task {own}; {needs}; use charrnn {OWN_TEXT.get(own, own)}")
    return loaded, build_model(loaded)


class Wanted(NamedTuple):
    """The files that a command reads, behind a model or alone."""

    what: str  # one of them is
    endings: frozenset[str]  # a folder's files with other names are left out; whatever is named itself is tried
    such_as: str


def model_first(names: list[str], wanted: Wanted) -> tuple[str | None, list[str]]:
    """The model that stands first, if one does, and the files.

    Raises UserError where what stands first is not there, unless it is called like one of the files: to go on with the newest run in the
    place of a model whose name was mistyped would be to answer with another one.
    """
    from charrnn.model_file import is_foreign, is_model
    from charrnn.paths import user_path

    first = names[0]
    if is_model(first):
        if ".safetensors" in wanted.endings and is_foreign(first):
            fact = "stands first, where such a file is a model, and it holds something else"
            raise UserError(f"{printable(first)}: {fact}; if it is features, name the run or the model before it")
        return first, names[1:]
    path = user_path(first, f"the {wanted.what}")
    if not any(called.suffix.lower() in wanted.endings for called in (path, *path.parents)) and not path.exists():
        expected = f"expected a run directory, a model file or {wanted.what}s"
        raise UserError(f"{printable(first)}: neither a model nor a {wanted.what}; {expected}")
    if behind := next((name for name in names[1:] if is_model(name) and not is_foreign(name)), None):
        expected = "expected it to stand first, or no model for the newest run; name it before the others"
        raise UserError(f"{printable(behind)}: a model, behind what it shall read; {expected}")
    return None, names


def files_named(names: list[str], wanted: Wanted, faults: list[DataError]) -> Iterator[Path]:
    """The files that a person named. A folder without any becomes a fault, and a folder's files of other kinds are told of."""
    from charrnn.data.files import files_in
    from charrnn.paths import user_path

    for name in names:
        path = user_path(name, f"the {wanted.what}")
        if not path.is_dir():
            yield path
            continue
        inside = files_in(path)
        found = [file for file in inside if file.suffix.lower() in wanted.endings]
        if not found:
            faults.append(DataError(f"{printable(name)}: the folder holds no {wanted.what}s; expected some such as {wanted.such_as}"))
        elif len(found) < len(inside):
            warn(f"{printable(name)}: {counted(len(inside) - len(found), 'file')} left out, by their names no {wanted.what}s")
        yield from found


def expect_beam(width: int | None) -> None:
    """Raises UserError where `--beam` is given and no search can be so wide."""
    if width is not None and not 1 <= width <= WIDEST:
        raise UserError(f"--beam {width}: expected 1 to {WIDEST:,} hypotheses; 1 is greedy")


def expect_seed(seed: float | None) -> None:
    """Raises UserError where `--seed` is given and no generator can begin with it."""
    if seed is not None and not 0 <= seed < 1 << 63:
        raise UserError(f"--seed {seed}: expected a whole number from 0 to {(1 << 63) - 1}; a lower one does as well")


def config_of(loaded: Loaded, set_: list[str] | None) -> Config:
    """The configuration of a model, with what the command line changes in it.

    Raises UserError where that is what the model does, what it is made of, or what a recording or a picture is to it.
    """
    from charrnn.config import HEARD, SEEN, build_config, keys_of

    # Where this machine keeps its cache is not for a model that may come from anywhere to say.
    settings = loaded.config.model_dump(mode="json", exclude={"data": {"cache"}})
    config = build_config(settings, str(loaded.path), set_ or [])
    if config.task != loaded.config.task:
        raise UserError(f"{loaded.path}: a model of task {loaded.config.task}; --set task={config.task} cannot change that; leave it out")
    for key in (*HEARD, *SEEN, *keys_of("model")):
        there, here = (attrgetter(key)(settings) for settings in (loaded.config, config))
        if there != here:
            fact = f"{key} is {there!r}, and --set makes it {here!r}"
            expected = "what the weights have learned from" if key in HEARD else "the model as it was trained"
            raise UserError(f"{loaded.path}: {fact}; expected {expected}, so leave it out")
    return config


def task_of(loaded: Loaded, config: Config, file: Path | None = None) -> Task:
    """What a model was trained to do, with the text it learned from, or with a file of a person's own, all of it in split `test`.

    Raises DataError where the text is not there, or is another one. What there is to say of a person's own is said, its faults too.
    """
    from charrnn.tasks import TASKS, load_task

    if file:
        task = TASKS[config.task].of_file(config, loaded.vocabulary, loaded.labels, file)
        for note in task.corpus.notes:
            warn(note)
        for fault in task.corpus.faults:
            tell(fault)
        return task
    remedy = "give a text with --file, or say where the text is now: --set data.path=…"
    try:
        with progress_bar("B", None) as bar:

            def encoding(done: int, total: int) -> None:
                bar.update(done - bar.n)

            task = load_task(config, encoding)
    except DataError as error:
        if isinstance(error, Faults) and len(error.faults) > 1:
            lost = f"{loaded.path}: {source_of(config)}, which it was trained on, cannot be read as it was; {remedy}"
            raise Faults([DataError(lost), *error.faults]) from None
        raise DataError(f"{error}; {remedy}") from None
    for what, same in (("characters", task.vocabulary == loaded.vocabulary), ("labels", task.labels == loaded.labels)):
        if not same:
            raise DataError(f"{loaded.path}: {source_of(config)} is not the text it was trained on, for its {what} are others; {remedy}")
    return task


def source_of(config: Config) -> str:
    """The text that is learned from."""
    path = config.data.path
    return config.data.source if path is None else _listed(path)


def split_of(config: Config, split: str) -> str:
    """A split, and where it lies."""
    own = {"val": config.data.val_path, "test": config.data.test_path}.get(split)
    return f"the {split} split of {source_of(config)}" if own is None else f"the {split} split, {_listed(own)}"


def _listed(path: str | list[str]) -> str:
    return printable(path if isinstance(path, str) else ", ".join(path))


def reading_of(loaded: Loaded, data: DataConfig, text: Path | Source, documents: str | None = None) -> Reading:
    """A text of a person's own as the model reads it, or cut into `documents`. What there is to say of it is said."""
    from charrnn.data.formats import read_file

    reading = read_file(data, text, documents or (None if loaded.vocabulary.end is not None else "none"))
    reading.settle()
    for note in reading.notes():
        warn(note)
    return reading
