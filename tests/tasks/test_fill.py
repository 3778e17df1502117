"""Task fill: no answer is read, each character of a split stands in one example, and figures against those made by hand.

Axes: T time, B batch, N blanks.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from charrnn.config import Config, ModelConfig
from charrnn.data.batch import IGNORED, Batch
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.metrics import Tally
from charrnn.models.char_rnn import CharRNN
from charrnn.ops.cells import CELLS
from charrnn.tasks import TASKS, load_task
from charrnn.tasks.fill import Fill, FillScores, measure_beside

POEMS = "".join(f"{'abcdefgh'[n % 8] * (1 + n % 5)} over the hills {n * n % 97}\n" for n in range(300))


def config_of(folder: Path, text: str = POEMS, *, data: dict[str, Any] | None = None, model: dict[str, Any] | None = None) -> Config:
    (folder / "text.txt").write_text(text, encoding="utf-8")
    return Config.model_validate(
        {
            "task": "fill",
            "data": {"path": str(folder / "text.txt"), "cache": str(folder / "cache"), "documents": "lines"} | (data or {}),
            "model": {"embedding_size": 6, "hidden_size": 8, "bidirectional": True} | (model or {}),
            "train": {"max_steps": 1, "batch_size": 8},
        }
    )


def task_of(folder: Path, text: str = POEMS, **sections: Any) -> Fill:
    task = load_task(config_of(folder, text, **sections))
    assert isinstance(task, Fill)
    return task


def examples(batches: list[Batch]) -> list[tuple[list[int], list[int]]]:
    """Inputs and targets of each example, without padding."""
    found = []
    for batch in batches:
        lengths = [len(batch.inputs)] * batch.inputs.size(1) if batch.lengths is None else batch.lengths.tolist()
        found += [(batch.inputs[:n, b].tolist(), batch.targets[:n, b].tolist()) for b, n in enumerate(lengths)]
    return found


def texts(task: Fill, split: str, **order: int) -> list[str]:
    """The examples as they were before anything was hidden."""
    whole = [[x if t == IGNORED else t for x, t in zip(*example)] for example in examples(list(task.batches(split, **order)))]
    return [task.vocabulary.decode(ids) for ids in whole]


def documents(task: Fill, split: str) -> list[str]:
    vocabulary = task.vocabulary
    shown = ["\0" if i == vocabulary.end else vocabulary.decode([i]) for i in task.corpus.split(split).tolist()]
    return "".join(shown).split("\0")[:-1]


def test_the_table_names_it(tmp_path: Path) -> None:
    assert TASKS["fill"] is Fill
    task = task_of(tmp_path)
    assert (task.unit, task.labels, task.vocabulary.symbols) == ("blank", (), ("unknown", "end", "blank"))


@pytest.mark.parametrize("split, epoch", [("train", 0), ("train", 3), ("val", 0)])
def test_every_document_is_an_example_once(tmp_path: Path, split: str, epoch: int) -> None:
    task = task_of(tmp_path)
    assert sorted(texts(task, split, epoch=epoch)) == sorted(documents(task, split))
    for inputs, targets in examples(list(task.batches(split, epoch=epoch))):
        assert [x == task.vocabulary.blank for x in inputs] == [t != IGNORED for t in targets]
        assert any(t != IGNORED for t in targets)


@pytest.mark.parametrize("documents_are", ["lines", "none"])
@pytest.mark.parametrize("longest", [1, 2, 7, 10, 4000])
def test_long_documents_and_streams_are_cut_into_windows(tmp_path: Path, longest: int, documents_are: str) -> None:
    task = task_of(tmp_path, POEMS[:1500], data={"documents": documents_are, "example_length": longest})
    cut: list[list[str]] = []
    for epoch in range(3):
        found = texts(task, "train", epoch=epoch)
        assert max(map(len, found)) <= longest
        joined = task.vocabulary.decode(task.corpus.split("train").tolist())
        assert Counter("".join(found)) == Counter(joined) and all(window in joined for window in found)
        assert len(list(task.batches("train", epoch=epoch))) == task.steps_per_epoch()
        cut.append(sorted(found))
    if longest in (7, 10):
        assert cut[0] != cut[1]  # at other places
    assert texts(task, "val", epoch=0) == texts(task, "val", epoch=1)


def test_blanks_differ_from_epoch_to_epoch_and_not_in_evaluation(tmp_path: Path) -> None:
    task, again = task_of(tmp_path), task_of(tmp_path)
    train = [examples(list(t.batches("train", epoch=epoch))) for t, epoch in ((task, 0), (again, 0), (task, 1))]
    assert train[0] == train[1] and sorted(train[0]) != sorted(train[2])
    val = [examples(list(t.batches("val", epoch=epoch))) for t, epoch in ((task, 0), (again, 5))]
    assert val[0] == val[1]
    rest = list(task.batches("train", epoch=1, first=3))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(list(task.batches("train", epoch=1))[3:], rest)) and len(rest) > 3


def test_the_same_blanks_whatever_the_batch_size(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    other = Fill(task.config.model_copy(update={"train": task.config.train.model_copy(update={"batch_size": 3})}), task.corpus)
    assert sorted(examples(list(task.batches("val")))) == sorted(examples(list(other.batches("val"))))


@pytest.mark.parametrize("wanted", [1, 2])
def test_exactly_so_many_blanks_an_example(tmp_path: Path, wanted: int) -> None:
    task = task_of(tmp_path, data={"blanks": {"per_example": wanted, "share": 0.5}})
    assert {sum(t != IGNORED for t in targets) for _, targets in examples(list(task.batches("val")))} == {wanted}


@pytest.mark.parametrize("num_layers, residual", [(1, False), (2, False), (3, True), (4, False), (4, True)])
@pytest.mark.parametrize("cell", list(CELLS))
def test_no_logit_moves_with_the_hidden_character(tmp_path: Path, cell: str, num_layers: int, residual: bool) -> None:
    """Two texts that differ in one character, in batches where it is hidden: the same inputs, and the same logits to the bit."""
    batches: list[list[Batch]] = []
    tasks = []
    for character in "xy":
        folder = tmp_path / character
        folder.mkdir()
        lines = ["xy over the hills", f"and far {character}way", "a longer line that is neither", "x", "yx"] * 2
        shape = {"cell": cell, "num_layers": num_layers, "residual": residual}
        tasks.append(task_of(folder, "\n".join(lines), data={"blanks": {"per_example": 3}, "val_fraction": 0.0}, model=shape))
        batches.append([batch for epoch in range(6) for batch in tasks[-1].batches("train", epoch=epoch)])
    assert tasks[0].vocabulary == tasks[1].vocabulary
    model = tasks[0].model().eval()
    hidden = 0
    for one, other in zip(*batches):
        asked = one.targets != IGNORED
        assert torch.equal(asked, other.targets != IGNORED)
        differs = (one.targets != other.targets).any(0)  # (B,)
        hidden += int(differs.sum())
        seen = (one.inputs != other.inputs).any(0)
        assert not (differs & seen).any()  # what is hidden is nowhere in what is read
        with torch.no_grad():
            lengths = None if one.lengths is None else one.lengths[~seen]
            logits = [model(batch.inputs[:, ~seen], None, lengths=lengths)[0] for batch in (one, other)]
        assert torch.equal(*logits)
    assert hidden > 0


def by_hand(model: nn.Module, task: Fill, batch: Batch) -> tuple[float, int, int, int]:
    """Nats, blanks, hits at 1 and at 5, example by example."""
    nats, count, right, hits = 0.0, 0, 0, 0
    first = len(task.vocabulary.symbols)
    for inputs, targets in examples([batch]):
        with torch.no_grad():
            logits: Tensor = model(torch.tensor([inputs]).t(), None)[0][:, 0, first:].double()  # (T, C)
        for at, target in enumerate(targets):
            if target != IGNORED:
                order = logits[at].argsort(descending=True).tolist()
                nats -= float(logits[at].log_softmax(-1)[target - first])
                count, right, hits = count + 1, right + (order[0] == target - first), hits + (target - first in order[:5])
    return nats, count, right, hits


@pytest.mark.parametrize("bidirectional", [True, False])
def test_figures_against_examples_read_alone(tmp_path: Path, bidirectional: bool) -> None:
    task = task_of(tmp_path, model={"bidirectional": bidirectional})
    model = task.model().eval()
    expected = np.sum([by_hand(model, task, batch) for batch in task.batches("val")], axis=0)
    found = measure(task, model, "val")
    assert isinstance(found, FillScores)
    sums = [float(found.tally.nats), int(found.tally.count), int(found.tally.correct), int(found.hits)]
    assert sums == pytest.approx(expected.tolist(), rel=1e-5)
    metrics = found.as_metrics("val_")
    assert metrics["val_nats_per_blank"] == pytest.approx(expected[0] / expected[1], rel=1e-5)
    assert metrics["val_accuracy"] == expected[2] / expected[1] and metrics["val_accuracy_at_5"] == expected[3] / expected[1]
    assert set(metrics) == {f"val_{key}" for key in ("nats_per_blank", "bits_per_blank", "perplexity", "accuracy", "accuracy_at_5")}


def test_the_loss_is_that_of_the_blanks_and_smoothing_is_not_told(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    model = task.model().eval()
    batch = next(task.batches("train"))
    loss, tally, state = task.loss(model, batch, None)
    assert state == () and float(loss.detach()) == pytest.approx(by_hand(model, task, batch)[0], rel=1e-5)
    smoothed, plain, _ = task.loss(model, batch, None, label_smoothing=0.2)
    assert float(plain.nats) == float(tally.nats) != float(smoothed.detach())
    assert loss.requires_grad and not tally.nats.requires_grad


def test_a_preview_shows_an_example_before_and_after(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    model = task.model().train()
    shown, filled, verdict = task.preview(model, torch.Generator().manual_seed(1)).split("\n")
    assert model.training and "□" in shown and "□" not in filled and len(shown) == len(filled)
    assert all(a == b for a, b in zip(shown, filled) if a != "□")
    whole = next(text for text in documents(task, "val") if all(a in (b, "□") for a, b in zip(shown, text)) and len(text) == len(shown))
    right = sum(a == b for a, b, c in zip(filled, whole, shown) if c == "□")
    assert verdict == f"{right} of {shown.count('□')} as they were"


def test_a_file_of_ones_own_is_read_with_the_models_vocabulary(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    other = tmp_path / "other.txt"
    other.write_text("a hill\nÄÄÄ\nover\n", encoding="utf-8")
    there = Fill.of_file(task.config, task.vocabulary, (), other)
    assert sorted(texts(there, "test")) == ["", "a hill", "over"]  # what is unknown is silent
    assert int(measure(there, task.model(), "test").tally.count) >= 2


@torch.no_grad()
def measure(task: Fill, model: nn.Module, split: str) -> FillScores:
    none = FillScores(Tally.zero(), torch.tensor(0))
    return sum((task.measure(model, batch, None)[0] for batch in task.batches(split)), start=none)


class Knows(nn.Module):
    """A language model that is sure of one thing: after `a` comes `b`, after `b` comes `c` and so on."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(len(vocabulary)).roll(1, 1) * 9)  # (V, V)

    def forward(self, inputs: Tensor, state: None, *, lengths: Tensor | None, at: Tensor, generator: None) -> tuple[Tensor, tuple[()]]:
        return self.weight[inputs[at]], ()


class TestBeside:
    def test_another_fill_model_with_another_vocabulary(self, tmp_path: Path) -> None:
        task = task_of(tmp_path)
        model = task.model()
        shuffled = Vocabulary(("unknown", "blank"), "".join(reversed(task.vocabulary.characters)))
        other = CharRNN(task.config.model, len(shuffled))
        with torch.no_grad():  # the same weights, in that vocabulary's order
            rows = [task.vocabulary.unknown, task.vocabulary.blank, *(task.vocabulary.id(c) for c in shuffled.characters)]
            for name, weight in model.named_parameters():
                other.get_parameter(name).copy_(weight[rows] if name in ("embedding.weight", "head.weight", "head.bias") else weight)
        found = measure_beside(task, model, other, "fill", shuffled, "val")
        assert found.left_out == 0 and found.accuracy_ratio == 1
        alone = measure(task, model, "val").as_metrics()
        assert found.own.as_metrics() == pytest.approx(alone) and found.other.as_metrics() == pytest.approx(alone)

    def test_a_language_model_reads_what_stands_before_a_blank(self, tmp_path: Path) -> None:
        task = task_of(tmp_path, "abcdefgh\n" * 40, data={"blanks": {"share": 0.5}})
        for symbols in (("unknown",), ("unknown", "end")):
            vocabulary = Vocabulary(symbols, "abcdefgh")
            knows = Knows(vocabulary)
            found = measure_beside(task, task.model(), knows, "lm", vocabulary, "val")
            batches = list(task.batches("val"))
            asked = sum(int((batch.targets != IGNORED).sum()) for batch in batches)
            first = sum(int((batch.targets[0] != IGNORED).sum()) for batch in batches)
            assert int(found.other.tally.count) == int(found.own.tally.count) == asked
            # After `end` comes `a`, and a stream without line ends begins with `a`, after which `b` is expected.
            assert int(found.other.tally.correct) == (asked if "end" in symbols else asked - first)

    def test_what_the_other_does_not_know_is_asked_of_neither(self, tmp_path: Path) -> None:
        task = task_of(tmp_path)
        vocabulary = Vocabulary(("unknown", "end"), "abcdefgh ")
        other = CharRNN(ModelConfig(embedding_size=4, hidden_size=4), len(vocabulary))
        found = measure_beside(task, task.model(), other, "lm", vocabulary, "val")
        targets = [t for _, ts in examples(list(task.batches("val"))) for t in ts if t != IGNORED]
        unknown = sum(task.vocabulary.decode([t]) not in vocabulary for t in targets)
        assert unknown == found.left_out > 0
        assert int(found.own.tally.count) == int(found.other.tally.count) == len(targets) - unknown

    def test_what_cannot_be_set_beside(self, tmp_path: Path) -> None:
        task = task_of(tmp_path)
        model = task.model()
        with pytest.raises(UserError, match="a model of task tag cannot be set beside one of task fill; expected one of task fill or lm"):
            measure_beside(task, model, model, "tag", task.vocabulary, "val")
        strange = Vocabulary(("unknown",), "ÄÖ")
        other = CharRNN(ModelConfig(embedding_size=4, hidden_size=4), len(strange))
        with pytest.raises(UserError, match="split 'val': the other model knows none of the hidden characters"):
            measure_beside(task, model, other, "lm", strange, "val")
