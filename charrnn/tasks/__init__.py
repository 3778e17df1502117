"""What a model is trained to do. A task is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable

from charrnn.config import Config
from charrnn.data.corpus import Corpus
from charrnn.tasks.lm import LanguageModel
from charrnn.tasks.task import Task

TASKS: dict[str, Callable[[Config, Corpus], Task]] = {"lm": LanguageModel}


def build_task(config: Config, corpus: Corpus) -> Task:
    return TASKS[config.task](config, corpus)
