"""What a model is trained to do. A task is one file and one line here."""

from __future__ import annotations

from charrnn.config import Config
from charrnn.data.corpus import Progress
from charrnn.tasks.caption import Captioning
from charrnn.tasks.classify import Classifier
from charrnn.tasks.fill import Fill
from charrnn.tasks.lm import LanguageModel
from charrnn.tasks.tag import Tagging
from charrnn.tasks.task import Task, TaskKind
from charrnn.tasks.transcribe import Transcribing

TASKS: dict[str, TaskKind] = {
    "lm": LanguageModel,
    "fill": Fill,
    "classify": Classifier,
    "tag": Tagging,
    "transcribe": Transcribing,
    "caption": Captioning,
}


def load_task(config: Config, progress: Progress | None = None) -> Task:
    """The task of a configuration, with the text it names. Raises DataError where that text cannot be used."""
    return TASKS[config.task].load(config, progress)
