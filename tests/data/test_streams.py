"""Every target is the true next character, through the window edges and through the column edges' carried state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charrnn.data.batch import IGNORED, Batch
from charrnn.data.corpus import Corpus, _map
from charrnn.data.streams import Streams, fit
from charrnn.data.vocabulary import SYMBOLS, Vocabulary

from .texts import corpus_of


def counted(count: int, folder: Path, skip: int = 0) -> Corpus:
    """A corpus whose ids are 1, 2, 3 …: each is its own place. `skip` ids before the split do not belong to it."""
    ids = np.arange(1, skip + count + 1, dtype=np.uint32)
    (folder / "ids.bin").write_bytes(b"\0\0\0\0")
    vocabulary = Vocabulary(SYMBOLS[:1], "".join(map(chr, range(0x4E00, 0x4E00 + skip + count))))
    mapped = _map(folder / "ids.bin")
    ranges = {"train": (skip, skip + count)}
    return Corpus(vocabulary, ids, ranges, documents=0, unknown=0, absent="", files=1, contents="", notes=[], mapped=mapped)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("streams")


@given(count=st.integers(2, 200), batch_size=st.integers(1, 9), window=st.integers(1, 40), skip=st.integers(0, 3))
def test_every_target_is_the_next_character(folder: Path, count: int, batch_size: int, window: int, skip: int) -> None:
    streams = Streams(counted(count, folder, skip), "train", batch_size, window)
    batches = list(streams.batches())
    assert len(batches) == streams.windows
    seen: list[int] = []
    before: Batch | None = None
    for batch in batches:
        steps, columns = batch.inputs.shape
        assert columns == batch_size and 1 <= steps <= window
        assert batch.inputs.dtype == batch.targets.dtype == torch.int64
        assert torch.equal(batch.targets, batch.inputs + 1)  # across the window: ids count upwards
        assert batch.continues == (before is not None)
        if before is not None:
            assert torch.equal(batch.inputs[0], before.targets[-1])
            assert before.inputs.shape[0] == window  # only the last window is short
        seen += batch.targets.flatten().tolist()
        before = batch
    # Each target comes once; what is passed over is the first character, and at the end what does not fill a row.
    assert sorted(seen) == list(range(skip + 2, skip + 2 + (count - 1) // batch_size * batch_size))


def test_columns_are_stretches_of_the_text(folder: Path) -> None:
    batches = list(Streams(counted(23, folder), "train", 2, 4).batches())
    columns = torch.cat([batch.inputs for batch in batches]).T
    assert columns.tolist() == [list(range(1, 12)), list(range(12, 23))]
    assert [batch.inputs.shape for batch in batches] == [(4, 2), (4, 2), (3, 2)]
    assert [batch.chars for batch in batches] == [8, 8, 6]


@given(count=st.integers(2, 100), batch_size=st.integers(1, 4), window=st.integers(1, 20), first=st.integers(0, 30))
def test_resumed_at_a_window(folder: Path, count: int, batch_size: int, window: int, first: int) -> None:
    streams = Streams(counted(count, folder), "train", batch_size, window)
    resumed, whole = list(streams.batches(first)), list(streams.batches())[first:]
    assert len(resumed) == len(whole)
    for one, other in zip(resumed, whole):
        assert torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)
        assert one.continues == other.continues


def test_the_unknown_is_read_and_not_asked(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, "aabbcabbaac" * 4, val_fraction=0, vocabulary={"max_size": 2})
    (batch,) = Streams(corpus, "train", 1, 100).batches()
    text = torch.from_numpy(corpus.ids.astype(np.int64))
    assert corpus.unknown == 8
    assert torch.equal(batch.inputs[:, 0], text[:-1])
    assert torch.equal(batch.targets[:, 0], torch.where(text[1:] == 0, IGNORED, text[1:]))
    assert (batch.inputs == 0).sum() == 7  # the last character is only a target
    assert (batch.targets == IGNORED).sum() == 8


def test_the_end_of_a_document_is_asked(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, "ab\ncd\nef", documents="lines", val_fraction=0)
    (batch,) = Streams(corpus, "train", 1, 100).batches()
    assert batch.targets.flatten().tolist().count(corpus.vocabulary.end) == 3


@given(count=st.integers(0, 300), batch_size=st.integers(1, 64), window=st.integers(1, 256))
def test_fit_shrinks_to_the_text(folder: Path, count: int, batch_size: int, window: int) -> None:
    streams = fit(counted(count, folder), "train", batch_size, window)
    assert 1 <= streams.batch_size <= batch_size and 1 <= streams.window <= window
    if count > batch_size * window:
        assert (streams.batch_size, streams.window) == (batch_size, window)
    if count >= 2:
        first = next(streams.batches())
        assert first.inputs.shape == (streams.window, streams.batch_size)
        assert streams.windows * streams.window * streams.batch_size >= (count - 1) // streams.batch_size
    else:
        assert list(streams.batches()) == []


@pytest.mark.parametrize("count, shape", [(5000, (128, 32)), (400, (16, 24)), (100, (16, 6)), (20, (19, 1)), (2, (1, 1))])
def test_fit(folder: Path, count: int, shape: tuple[int, int]) -> None:
    streams = fit(counted(count, folder), "train", 32, 128)
    assert (streams.window, streams.batch_size) == shape
