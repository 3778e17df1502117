"""Task classify: each text of a split once and as it is, the loss against cross-entropy by hand, and what a person is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from charrnn.config import Config
from charrnn.data.batch import IGNORED, Batch
from charrnn.errors import DataError, UserError
from charrnn.metrics import Tally
from charrnn.tasks import load_task
from charrnn.tasks.classify import Classifier, Scores, probabilities, shortened
from charrnn.tasks.task import class_weights

ROWS = [("abc"[n % 3 if n % 4 else 0], "text " * (n % 7) + f"number {n}") for n in range(40)]


def written(path: Path, rows: list[tuple[str, str]] = ROWS) -> Path:
    path.write_text("label\ttext\n" + "".join(f"{label}\t{text}\n" for label, text in rows), encoding="utf-8")
    return path


def task(folder: Path, rows: list[tuple[str, str]] = ROWS, *, data: dict[str, Any] | None = None, **train: Any) -> Classifier:
    config = Config.model_validate(
        {
            "task": "classify",
            "data": {"path": str(written(folder / "texts.tsv", rows)), "val_fraction": 0.2} | (data or {}),
            "model": {"embedding_size": 6, "hidden_size": 8, "bidirectional": True},
            "train": {"max_steps": 1, "batch_size": 4} | train,
        }
    )
    built = load_task(config)
    assert isinstance(built, Classifier)
    return built


def read(task: Classifier, batches: list[Batch]) -> list[tuple[str, str]]:
    """The texts of batches with their labels."""
    found = []
    for batch in batches:
        assert batch.targets.shape == (batch.inputs.size(1),) and not batch.continues
        lengths = [len(batch.inputs)] * len(batch.targets) if batch.lengths is None else batch.lengths.tolist()
        for column, length in enumerate(lengths):
            text = "".join(task.vocabulary.decode([i]) or "⁇" for i in batch.inputs[:length, column].tolist())
            found.append((task.labels[int(batch.targets[column])], text))
    return found


def test_an_epoch_reads_each_text_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    built = task(tmp_path)
    epochs = [list(built.batches("train", epoch=epoch)) for epoch in (0, 0, 1)]
    assert len(epochs[0]) == built.steps_per_epoch() == 8
    once, again, other = (read(built, batches) for batches in epochs)
    assert once == again != other and sorted(once) == sorted(other)
    val = read(built, list(built.batches("val", epoch=5)))
    assert val == read(built, list(built.batches("val")))
    whole = sorted([*once, *val])
    assert [label for label, _ in whole] == sorted(label for label, _ in ROWS) and len(set(once) & set(ROWS)) == 32
    first = list(built.batches("train", epoch=1, first=3))
    assert read(built, first) == read(built, epochs[2][3:])


def test_the_protocol_is_filled_in(tmp_path: Path) -> None:
    built = task(tmp_path)
    assert (built.labels, built.unit, built.best_by) == (("a", "b", "c"), "example", ("accuracy", False))
    model, again = built.model(), built.model()
    assert dict(model.named_parameters())["head.bias"].shape == (3,)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))


class Fixed(nn.Module):
    """A model whose logits are given."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, inputs: torch.Tensor, state: Any, **_: Any) -> tuple[torch.Tensor, tuple[()]]:
        return self.logits, ()


LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 3.0, 0.0]])
BATCH = Batch(torch.zeros(5, 3, dtype=torch.int64), torch.tensor([0, 0, 1]), torch.tensor([5, 2, 1]), continues=False)


def test_the_loss_is_the_weighted_cross_entropy_and_the_tally_the_plain_one(tmp_path: Path) -> None:
    nats = -LOGITS.log_softmax(-1)
    for weights, expected in ((None, [1.0, 1.0, 1.0]), ({"b": 3.0}, [1.0, 3.0, 1.0])):
        loss, tally, state = task(tmp_path, class_weights=weights).loss(Fixed(LOGITS), BATCH, None)
        assert float(loss.detach()) == pytest.approx(float(nats[0, 0] * expected[0] + nats[1, 0] * expected[0] + nats[2, 1] * expected[1]))
        assert (int(tally.count), int(tally.correct), state) == (3, 2, ())
        assert float(tally.nats) == pytest.approx(float(nats[0, 0] + nats[1, 0] + nats[2, 1])) and not tally.nats.requires_grad
    smoothed, tally, _ = task(tmp_path).loss(Fixed(LOGITS), BATCH, None, label_smoothing=0.3)
    assert float(smoothed.detach()) == pytest.approx(0.7 * float(tally.nats) + 0.1 * float(nats.sum()))


def test_an_evaluation_counts_what_is_taken_for_what(tmp_path: Path) -> None:
    found, _ = task(tmp_path).measure(Fixed(LOGITS), BATCH, None)
    total = found + found
    assert isinstance(total, Scores) and total.confusion.counts.tolist() == [[2, 2, 0], [0, 2, 0], [0, 0, 0]]
    metrics = total.as_metrics("val_")
    assert list(metrics) == ["val_nats_per_example", "val_perplexity", "val_accuracy", "val_macro_f1"]
    assert metrics["val_accuracy"] == pytest.approx(2 / 3) and metrics["val_macro_f1"] == pytest.approx(2 / 3)
    assert int(total.count) == 6 and isinstance(total.tally, Tally)
    assert total.describe() == "\n".join(
        [
            "truth \\ answer  a  b  c  texts  precision  recall     F1",
            "a               2  2  0      4     100.0%   50.0%  66.7%",
            "b               0  2  0      2      50.0%  100.0%  66.7%",
            "c               0  0  0      0       0.0%    0.0%   0.0%",
        ]
    )


def test_balanced_weights_make_rare_labels_count_as_much_as_frequent_ones() -> None:
    counts = torch.tensor([6, 3, 1, 0]).numpy()
    weights = class_weights("balanced", "abcd", counts)
    assert weights is not None and weights.tolist() == pytest.approx([10 / 24, 10 / 12, 10 / 4, 10 / 4])
    assert class_weights(None, "abcd", counts) is None


def test_a_weight_for_no_label_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        task(tmp_path, class_weights={"A": 2.0})
    assert str(caught.value) == "train.class_weights: no label 'A'; expected some of a, b, c; did you mean 'a'?"


@pytest.mark.parametrize("length, expected", [(1, "a"), (2, "ah"), (3, "abh"), (5, "abcgh"), (8, "abcdefgh"), (9, "abcdefgh")])
def test_of_a_long_text_both_ends_are_read(length: int, expected: str) -> None:
    ids = torch.tensor([ord(c) for c in "abcdefgh"]).numpy()
    assert "".join(map(chr, shortened(ids, length).tolist())) == expected


def test_a_text_longer_than_any_seen_is_read(tmp_path: Path) -> None:
    built = task(tmp_path, data={"example_length": 12})
    assert all(len(batch.inputs) <= 12 for batch in built.batches("train"))
    told = " of more than 12 characters: of each the first and the last half of so many are read"
    assert any(note.endswith(told) for note in built.notes())
    path = written(tmp_path / "long.tsv", [("a", "text " * 20_000), ("b", "⅋")])
    other = Classifier.of_file(built.config, built.vocabulary, built.labels, path)
    assert [text for _, text in read(other, list(other.batches("test")))] == ["⁇", "text t text "]


def test_probabilities_do_not_depend_on_the_neighbours(tmp_path: Path) -> None:
    built = task(tmp_path)
    model = built.model().train()
    texts = [ids for batch in built.batches("val") for ids in batch.inputs.T[:, :3].numpy()]
    texts += [built.corpus.ids[:40]]
    together = probabilities(model, texts)
    assert model.training and torch.allclose(together.sum(-1), torch.ones(len(texts)))
    torch.testing.assert_close(together, torch.cat([probabilities(model, [text]) for text in texts]))


def test_a_preview_shows_texts_with_their_answers(tmp_path: Path) -> None:
    built = task(tmp_path, [("好", "很好"), ("差", "太差了")] * 10, data={"val_fraction": 0.5})
    model = built.model()
    with torch.no_grad():
        dict(model.named_parameters())["head.bias"].copy_(torch.tensor([-50.0, 50.0]))
    lines = built.preview(model, torch.Generator().manual_seed(1)).split("\n")
    assert built.labels == ("好", "差") or built.labels == ("差", "好")
    sure = built.labels[1]
    assert len(lines) == 5
    for line in lines:
        text = "很好" if line.endswith("很好") else "太差了"
        truth = "好" if text == "很好" else "差"
        assert line == f"{sure} 100.0%{'' if truth == sure else f' (it is {truth})'}: {text}"


def test_notes_say_what_there_is_to_learn_from(tmp_path: Path) -> None:
    notes = task(tmp_path, [("a", "x" * n) for n in range(1, 13)] + [("b", "y")], data={"val_fraction": 0}).notes()
    assert notes == [
        "13 texts to train on, 0 for val, 0 for test; 2 labels, in train: 'a' 12, 'b' 1",
        "the val split holds no text, so there is nothing to evaluate on; raise data.val_fraction or name data.val_path",
    ]


def test_a_split_without_texts_is_refused(tmp_path: Path) -> None:
    built = task(tmp_path)
    with pytest.raises(DataError, match=r"^data.test_fraction: the test split holds no text; expected some to classify, so raise "):
        next(built.batches("test"))
    with pytest.raises(UserError, match=r"^split 'vla': there is no such split; expected train, val, test; did you mean 'val'[?]$"):
        next(built.batches("vla"))


def test_it_learns(tmp_path: Path) -> None:
    built = task(tmp_path, [("odd" if n % 2 else "even", f"{n * 7919 % 1000:03d} is {'an odd' if n % 2 else 'one'}") for n in range(60)])
    model = built.model().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for epoch in range(8):
        for batch in built.batches("train", epoch=epoch):
            loss, tally, _ = built.loss(model, batch, None)
            optimizer.zero_grad()
            torch.autograd.backward(loss / tally.count)
            optimizer.step()
    model.eval()
    assert all(built.measure(model, batch, None)[0].as_metrics()["accuracy"] == 1 for batch in built.batches("val"))
    assert IGNORED not in {int(target) for batch in built.batches("val") for target in batch.targets}
