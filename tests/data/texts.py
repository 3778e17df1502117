"""Text in files, and what a corpus made of it, as text again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from charrnn.config import DataConfig
from charrnn.data.corpus import Corpus, load_corpus
from charrnn.data.documents import split_documents
from charrnn.data.vocabulary import Vocabulary
from charrnn.evaluation import Window, documents_stream


def settings(path: Path | list[Path], **data: Any) -> DataConfig:
    paths = [str(p) for p in path] if isinstance(path, list) else str(path)
    folder = path[0].parent if isinstance(path, list) else path.parent
    return DataConfig.model_validate({"path": paths, "cache": str(folder / "cache")} | data)


def corpus_of(
    folder: Path, content: str | bytes, *, seed: int = 1, progress: Callable[[int, int], None] | None = None, **data: Any
) -> Corpus:
    path = folder / "text.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_corpus(settings(path, **data), seed, progress)


def shown(corpus: Corpus, split: str) -> str:
    """A split as text, with `⏹` for the end of a document and `⁇` for the unknown."""
    symbols = {0: "⁇", 1: "⏹"}
    first = len(corpus.vocabulary.symbols)
    return "".join(symbols[i] if i < first else corpus.vocabulary.characters[i - first] for i in corpus.split(split).tolist())


def whole(corpus: Corpus) -> str:
    return "".join(shown(corpus, split) for split in ("train", "test", "val"))


def rejoined(pieces: Iterable[tuple[str, list[int]]]) -> list[str]:
    """The documents of what split_documents yields."""
    documents, opened = [], ""
    for text, closes in pieces:
        begin = 0
        for close in closes:
            documents.append(opened + text[begin:close])
            opened, begin = "", close
        opened += text[begin:]
    assert opened == ""
    return documents


def text_stream(vocabulary: Vocabulary, text: str | Iterable[str], documents: str = "none") -> Iterator[Window]:
    """A text, or its pieces one after the other, as one stream cut into documents where the vocabulary has an end for them."""
    pieces = [text] if isinstance(text, str) else text
    return documents_stream(vocabulary, split_documents(pieces, documents if vocabulary.end is not None else "none"))
