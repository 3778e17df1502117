"""Task lm: its loss against cross-entropy by hand, and each character of a split predicted exactly once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from charrnn.config import Config
from charrnn.data.batch import IGNORED, Batch
from charrnn.data.streams import EvaluationStreams
from charrnn.data.vocabulary import opening
from charrnn.errors import UserError
from charrnn.metrics import Tally
from charrnn.tasks import TASKS, load_task
from charrnn.tasks.lm import LanguageModel
from charrnn.tasks.task import State, Task, carry

LINES = "".join(f"{n} bottles of beer on the wall, {n * n % 101} of them green\n" for n in range(400))


def task(folder: Path, text: str = LINES, *, data: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **train: Any) -> Task:
    (folder / "text.txt").write_text(text, encoding="utf-8")
    config = Config.model_validate(
        {
            "data": {"path": str(folder / "text.txt"), "cache": str(folder / "cache")} | (data or {}),
            "model": {"embedding_size": 6, "hidden_size": 10} | (model or {}),
            "train": {"max_steps": 1, "batch_size": 4, "tbptt_window": 16} | train,
        }
    )
    return load_task(config)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def targets_of(streams: EvaluationStreams, window: int) -> list[int]:
    """The places that are asked for, where ids are their own places. Checks that each input stands just before its target."""
    found: list[int] = []
    for index, batch in enumerate(streams.batches(window)):
        assert batch.continues == (index > 0) and batch.lengths is None and batch.inputs.shape == batch.targets.shape
        asked = batch.targets != IGNORED
        assert torch.equal(batch.inputs[asked] + 1, batch.targets[asked])
        found += batch.targets[asked].tolist()
    return found


def test_the_table_names_what_it_builds(tmp_path: Path) -> None:
    assert TASKS["lm"] is LanguageModel
    built = task(tmp_path)
    assert isinstance(built, LanguageModel) and len(built.vocabulary) == len(set(LINES)) + 1


@pytest.mark.parametrize("window", [1, 7, 16, 256])
@pytest.mark.parametrize("lead", [0, 5, 256])
@pytest.mark.parametrize("columns", [1, 2, 3, 8])
@pytest.mark.parametrize("length", [2, 3, 8, 9, 31, 97])
def test_every_target_exactly_once(length: int, columns: int, lead: int, window: int) -> None:
    streams = EvaluationStreams(np.arange(length), unknown=-2, columns=columns, lead=lead)
    assert sorted(targets_of(streams, window)) == list(range(1, length))


@pytest.mark.parametrize("lead", [0, 5, 20])
def test_columns_are_one_stretch_of_text_from_their_lead_on(lead: int) -> None:
    streams = EvaluationStreams(np.arange(100, 161), unknown=0, columns=3, lead=lead)
    inputs = torch.cat([batch.inputs for batch in streams.batches(7)])  # (T, B)
    targets = torch.cat([batch.targets for batch in streams.batches(7)])  # (T, B)
    for column, first in enumerate((100, 120, 140)):
        start = max(100, first - lead)
        stretch = inputs[: first + 20 - start, column]
        assert stretch.tolist() == list(range(start, first + 20))
        assert targets[: first - start, column].tolist() == [IGNORED] * (first - start)
        assert not inputs[len(stretch) :, column].any() and (targets[len(stretch) :, column] == IGNORED).all()


def test_evaluation_passes_over_no_batch_when_begun_later() -> None:
    streams = EvaluationStreams(np.arange(50), unknown=0, columns=2, lead=4)
    whole, rest = list(streams.batches(5)), list(streams.batches(5, first=2))
    assert len(rest) == len(whole) - 2 and rest[0].continues
    assert all(torch.equal(a.targets, b.targets) for a, b in zip(whole[2:], rest))


def test_nothing_to_predict_is_no_batch() -> None:
    assert list(EvaluationStreams(np.arange(1), unknown=0, columns=8).batches()) == []


def test_unknown_is_read_and_never_asked() -> None:
    streams = EvaluationStreams(np.array([3, 0, 4, 0, 5]), unknown=0, columns=1)
    (batch,) = streams.batches()
    assert batch.inputs.flatten().tolist() == [3, 0, 4, 0]
    assert batch.targets.flatten().tolist() == [IGNORED, 4, IGNORED, 5]


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_is_counted_whole(tmp_path: Path, split: str) -> None:
    built = task(tmp_path, data={"val_fraction": 0.4, "test_fraction": 0.2})
    model, state, total = built.model().eval(), None, Tally.zero()
    for batch in built.batches(split):
        _, tally, state = built.loss(model, batch, carry(state, batch))
        total = total + tally
    assert int(total.count) == len(built.corpus.split(split)) - 1
    assert next(built.batches(split)).inputs.size(1) == {"val": 3, "test": 1}[split]


def test_columns_score_what_one_column_would(tmp_path: Path) -> None:
    """With a lead as long as the text, every column has read all that came before it."""
    built = task(tmp_path)
    model, ids = built.model().eval(), built.corpus.split("val")[:200]

    def nats(columns: int) -> float:
        state: State | None = None
        total = Tally.zero()
        for batch in EvaluationStreams(ids, 0, columns).batches(window=32):
            _, tally, state = built.loss(model, batch, carry(state, batch))
            total = total + tally
        return total.nats_per_char()

    assert nats(5) == pytest.approx(nats(1), rel=1e-6)


def test_training_walks_the_split_in_windows(tmp_path: Path) -> None:
    built = task(tmp_path)
    batches = list(built.batches("train"))
    assert len(batches) == built.steps_per_epoch()
    assert batches[0].inputs.shape == (16, 4)
    assert torch.equal(next(built.batches("train", first=3)).inputs, batches[3].inputs)


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    built = task(tmp_path)
    with pytest.raises(UserError, match="split 'vall': there is no such split; expected train, val, test; did you mean 'val'"):
        built.batches("vall")
    with pytest.raises(UserError, match=r"data\.test_fraction: the test split holds 0 characters; expected at least 2"):
        built.batches("test")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_cross_entropy_by_hand(tmp_path: Path, smoothing: float) -> None:
    built = task(tmp_path)
    model, batch = built.model(), next(built.batches("train"))
    batch.targets[3:5, 1] = IGNORED
    loss, tally, state = built.loss(model, batch, None, label_smoothing=smoothing)
    log_p = model(batch.inputs, None)[0].log_softmax(-1)  # (T, B, V)
    asked = [(t, b, int(batch.targets[t, b])) for t in range(16) for b in range(4) if batch.targets[t, b] != IGNORED]
    assert len(asked) == 62
    plain = -sum(log_p[t, b, target] for t, b, target in asked)
    uniform = -sum(log_p[t, b].mean() for t, b, _ in asked)
    torch.testing.assert_close(loss, (1 - smoothing) * plain + smoothing * uniform)
    torch.testing.assert_close(tally.nats.float(), torch.as_tensor(plain).detach())
    assert int(tally.count) == 62
    assert int(tally.correct) == sum(int(log_p[t, b].argmax()) == target for t, b, target in asked)
    assert loss.requires_grad and loss.dtype == torch.float32 and not tally.nats.requires_grad and tally.nats.dtype == torch.float64
    assert all(s.requires_grad for layer in state for s in layer)


def test_what_is_ignored_moves_nothing(tmp_path: Path) -> None:
    built = task(tmp_path)
    model, batch = built.model(), next(built.batches("train"))
    nothing = Batch(batch.inputs, torch.full_like(batch.targets, IGNORED), None, continues=False)
    loss, tally, _ = built.loss(model, nothing, None)
    torch.autograd.backward(loss)
    assert (loss.item(), int(tally.count), int(tally.correct)) == (0.0, 0, 0)
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


def test_loss_under_autocast_is_float32(tmp_path: Path) -> None:
    built = task(tmp_path)
    model, batch = built.model(), next(built.batches("train"))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _, _ = built.loss(model, batch, None)
    exact, _, _ = built.loss(model, batch, None)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.01, atol=0)


def test_the_generator_reaches_the_dropout(tmp_path: Path) -> None:
    built = task(tmp_path, model={"dropout": {"output": 0.5}})
    model, batch = built.model(), next(built.batches("train"))
    losses = [built.loss(model, batch, None, generator=seeded(seed))[0].item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_carry_keeps_the_value_and_cuts_the_graph() -> None:
    state: State = ((torch.randn(2, 3, requires_grad=True) * 2,),)
    x = torch.zeros(1, 2, dtype=torch.int64)
    carried = carry(state, Batch(x, x, None, continues=True))
    assert carried is not None and torch.equal(carried[0][0], state[0][0]) and not carried[0][0].requires_grad
    assert carry(state, Batch(x, x, None, continues=False)) is None
    assert carry(None, Batch(x, x, None, continues=True)) is None


def test_carried_training_loss_is_that_of_one_long_window(tmp_path: Path) -> None:
    text = LINES[:5000]
    short, long = task(tmp_path, text, tbptt_window=10), task(tmp_path, text, tbptt_window=10_000)
    model, state, total = short.model(), None, Tally.zero()
    for batch in short.batches("train"):
        _, tally, state = short.loss(model, batch, carry(state, batch))
        total = total + tally
    (batch,) = long.batches("train")
    expected = long.loss(model, batch, None)[1]
    assert int(total.count) == int(expected.count)
    assert total.nats_per_char() == pytest.approx(expected.nats_per_char(), rel=1e-5)


def test_a_model_is_its_seeds_alone(tmp_path: Path) -> None:
    built = task(tmp_path)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = built.model().state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    assert all(torch.equal(first[name], tensor) for name, tensor in built.model().state_dict().items())


class Silent(nn.Module):
    """Always the same logits, and what it was given."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.read: list[int] = []

    def forward(self, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        assert not self.training and (state is None) == (not self.read)
        self.read += inputs.flatten().tolist()
        return self.logits.expand(1, 1, -1), ((self.logits,),)


def test_preview_is_reproducible_and_leaves_the_model_training(tmp_path: Path) -> None:
    built = task(tmp_path)
    model = built.model()
    assert model.training
    text = built.preview(model, seeded(1), 50)
    assert len(text) == 50 and set(text) <= set(LINES)
    assert text == built.preview(model, seeded(1), 50) != built.preview(model, seeded(2), 50)
    assert model.training
    assert not (model.eval(), built.preview(model, seeded(1), 1))[0].training


def test_preview_never_writes_unknown_nor_a_blank(tmp_path: Path) -> None:
    built = task(tmp_path, data={"vocabulary": {"blank": True}})
    logits = torch.zeros(len(built.vocabulary))
    logits[[built.vocabulary.unknown, built.vocabulary.blank]] = 50.0
    model = Silent(logits)
    assert len(built.preview(model, seeded(), 30)) == 30
    assert model.read[0] == built.vocabulary.id("\n") and not {built.vocabulary.unknown, built.vocabulary.blank} & set(model.read)


def test_preview_begins_as_a_sample_does_where_the_text_has_no_lines(tmp_path: Path) -> None:
    built = task(tmp_path, "zebra crossing " * 20)
    model = Silent(torch.zeros(len(built.vocabulary)))
    built.preview(model, seeded(), 2)
    assert model.read[0] == opening(built.vocabulary, [])[0] == built.vocabulary.id(" ")


@pytest.mark.parametrize("documents, gap", [("lines", "\n"), ("blank_lines", "\n\n")])
def test_preview_goes_from_document_to_document(tmp_path: Path, documents: str, gap: str) -> None:
    built = task(tmp_path, LINES.replace("\n", "\n\n"), data={"documents": documents})
    end = built.vocabulary.end
    assert end is not None
    logits = torch.zeros(len(built.vocabulary))
    logits[end] = 50.0
    model = Silent(logits)
    assert built.preview(model, seeded(), 3) == gap * 3
    assert model.read == [end] * 3


def test_notes_say_what_was_changed(tmp_path: Path) -> None:
    assert task(tmp_path).notes() == []
    shrunk = task(tmp_path, "abcabcabd" * 5, batch_size=32, tbptt_window=64).notes()
    assert shrunk[0] == "batch_size 32 shrunk to 2: the text has only 40 characters to train on"
    assert shrunk[1] == "tbptt_window 64 shrunk to 19: the text has only 40 characters to train on"
    assert task(tmp_path, data={"val_fraction": 0}).notes() == [
        "the val split holds 0 characters, so there is nothing to evaluate on; raise data.val_fraction or add text"
    ]
    (unknown,) = task(tmp_path, data={"vocabulary": {"max_size": 20}}).notes()
    assert "are outside the vocabulary: read as unknown, and not scored" in unknown


def test_it_learns(tmp_path: Path) -> None:
    built = task(tmp_path, batch_size=16)
    model = built.model()
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    state: State | None = None
    nats = []
    for batch in built.batches("train"):
        loss, tally, state = built.loss(model, batch, carry(state, batch))
        optimizer.zero_grad()
        torch.autograd.backward(loss / tally.count)
        optimizer.step()
        nats.append(tally.nats_per_char())
    assert nats[0] > 2.5 and sum(nats[-10:]) / 10 < 1.7, (nats[0], nats[-1])
