"""Task tag: what is read and asked in each split, its loss and its figures against those made by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charrnn.config import Config
from charrnn.data.batch import IGNORED, Batch
from charrnn.errors import DataError, UserError
from charrnn.evaluation import measure
from charrnn.metrics import Confusion, Tally
from charrnn.models.char_rnn import CharRNN
from charrnn.planning import can_be_scored
from charrnn.tasks import TASKS, load_task
from charrnn.tasks.tag import Tagging, TagScores, best_decision

CLAUSES = ("天地玄黄", "宇宙洪荒", "日月盈昃", "辰宿列张", "寒来暑往", "秋收冬藏")
PROSE = "".join(f"{CLAUSES[i % 6]}{'，。？'[i * 7 // 2 % 3]}{'甲乙丙丁'[i % 4] * (i % 5)}\n" for i in range(200))
CONLL = "\n".join("\n".join(f"{c} {label}" for c, label in zip(f"{who}在北京{what}", ["B-PER", "O", "B-LOC", "I-LOC", "O"]))
                  + "\n" for who in "王李张刘" for what in "哭笑跑坐睡")  # fmt: skip


def config_of(folder: Path, text: str, model: dict[str, Any], train: dict[str, Any], data: dict[str, Any]) -> Config:
    (folder / "text.txt").write_text(text, encoding="utf-8")
    return Config.model_validate(
        {
            "task": "tag",
            "device": "cpu",
            "data": {"path": str(folder / "text.txt"), "cache": str(folder / "cache"), "example_length": 16} | data,
            "model": {"embedding_size": 6, "hidden_size": 8, "bidirectional": True} | model,
            "train": {"max_steps": 1, "batch_size": 4} | train,
        }
    )


def task_of(
    folder: Path, text: str = PROSE, *, model: dict[str, Any] | None = None, train: dict[str, Any] | None = None, **data: Any
) -> Tagging:
    task = load_task(config_of(folder, text, model or {}, train or {}, {"labels": "punctuation", "marks": "，。？"} | data))
    assert isinstance(task, Tagging)
    return task


def columns(folder: Path, **sections: Any) -> Tagging:
    return task_of(folder, CONLL, labels="column", marks="，。、；：？！", format="conll", val_fraction=0.3, **sections)


def answered(task: Tagging, split: str, **order: int) -> list[tuple[str, str]]:
    """Each character that is asked for with its label, in the order of the batches, column by column."""
    found = []
    for batch in task.batches(split, **order):
        for inputs, targets in zip(batch.inputs.t().tolist(), batch.targets.t().tolist()):
            found += [(task.vocabulary.decode([i]), task.labels[k]) for i, k in zip(inputs, targets) if k != IGNORED]
    return found


def expected(text: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for c in text:
        if c in "，。？" and found:
            found[-1] = (found[-1][0], c)
        elif not c.isspace():
            found.append((c, "O"))
    return found


def test_the_table_names_it(tmp_path: Path) -> None:
    assert TASKS["tag"] is Tagging
    task = task_of(tmp_path)
    assert (task.unit, task.labels, task.best_by) == ("char", ("O", "，", "。", "？"), ("f1", False))
    assert task_of(tmp_path, labels="segmentation").labels == ("O", "S")


@pytest.mark.parametrize("documents", ["none", "lines"])
def test_each_character_of_val_is_asked_once(tmp_path: Path, documents: str) -> None:
    task = task_of(tmp_path, documents=documents, val_fraction=0.4)
    shown = [task.vocabulary.decode([i]) or "\n" for i in task.corpus.split("val").tolist()]
    assert Counter(answered(task, "val")) == Counter(expected("".join(shown)))
    assert any((batch.targets == IGNORED).any() for batch in task.batches("val")) or documents == "lines"


def test_train_is_cut_elsewhere_in_each_epoch(tmp_path: Path) -> None:
    task = task_of(tmp_path, documents="none")
    whole = Counter(expected("".join(task.vocabulary.decode([i]) for i in task.corpus.split("train").tolist())))
    for epoch in range(3):
        left_out = whole - Counter(answered(task, "train", epoch=epoch))
        assert left_out.total() <= 8 and not Counter(answered(task, "train", epoch=epoch)) - whole
        assert len(list(task.batches("train", epoch=epoch))) == task.steps_per_epoch()
    one, again, other = (answered(task, "train", epoch=epoch) for epoch in (1, 1, 2))
    assert one == again != other
    rest = list(task.batches("train", epoch=1))[3:]
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(rest, task.batches("train", epoch=1, first=3)))


def test_a_mark_that_is_rare_or_only_in_test_is_a_label_there(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("天地？玄黄。", encoding="utf-8")
    task = task_of(tmp_path, "天地，玄黄。宇宙洪荒，" * 40, test_path=str(tmp_path / "test.txt"), vocabulary={"min_count": 3})
    assert sorted(answered(task, "test")) == sorted(expected("天地？玄黄。"))
    assert any("？: not in what is trained on" in note for note in task.notes())


def test_columns_are_read(tmp_path: Path) -> None:
    task = columns(tmp_path)
    assert task.labels == ("B-LOC", "B-PER", "I-LOC", "O")
    found = answered(task, "val") + answered(task, "train")
    assert Counter(found)[("北", "B-LOC")] == 20 and Counter(found)[("王", "B-PER")] == 5 and len(found) == 100


def test_a_file_is_read_as_test(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    (tmp_path / "own.txt").write_text("「天地」，玄〈黄〉？\r\n宇宙", encoding="utf-8")
    own = Tagging.of_file(task.config, task.vocabulary, task.labels, tmp_path / "own.txt")
    assert answered(own, "test") == expected("天地，玄黄？宇宙")
    (tmp_path / "own.conll").write_text("王 B-PER\n去 X\n", encoding="utf-8")
    task = columns(tmp_path)
    with pytest.raises(DataError, match=r"own\.conll: line 2: unknown label 'X'; expected one of B-LOC, B-PER, I-LOC, O"):
        Tagging.of_file(task.config, task.vocabulary, task.labels, tmp_path / "own.conll")


class Fixed(nn.Module):
    """Answers with logits that depend on the character alone."""

    def __init__(self, characters: int, labels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(characters, labels, generator=torch.Generator().manual_seed(3)))

    def forward(
        self, inputs: Tensor, state: object, *, lengths: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, tuple[()]]:
        return self.weight[inputs], ()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, {"。": 3.0}, "balanced"])
def test_the_loss_is_weighted_cross_entropy_and_the_tally_plain(tmp_path: Path, smoothing: float, weights: Any) -> None:
    task = task_of(tmp_path, documents="lines", train={"class_weights": weights})
    model = Fixed(len(task.vocabulary), len(task.labels))
    batch = next(task.batches("train"))
    loss, tally, state = task.loss(model, batch, None, label_smoothing=smoothing)
    asked = batch.targets != IGNORED
    logits, targets = model.weight[batch.inputs][asked], batch.targets[asked]
    counts = torch.bincount(torch.from_numpy(task.splits["train"].labels), minlength=4)
    by_label = {"balanced": counts.sum() / (4 * counts), None: torch.ones(4)}.get(
        weights if isinstance(weights, str) else None, torch.ones(4)
    )
    by_label = torch.tensor([1.0, 1.0, 3.0, 1.0]) if isinstance(weights, dict) else by_label
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets, by_label, reduction="sum", label_smoothing=smoothing))
    assert tally.nats.item() == pytest.approx(F.cross_entropy(logits, targets, reduction="sum").item(), rel=1e-5)
    assert int(tally.count) == int(asked.sum()) and int(tally.correct) == int((logits.argmax(-1) == targets).sum()) and state == ()


def test_a_crf_is_trained_on_its_own_nats_and_asked_for_sequences(tmp_path: Path) -> None:
    task = columns(tmp_path, model={"crf": True})
    model = task.model()
    assert isinstance(model, CharRNN) and model.crf is not None
    with torch.no_grad():
        model.crf.transitions[1] = torch.tensor([-9.0, -9.0, -9.0, 9.0])  # a person is followed by nothing else
    batch = next(task.batches("train"))
    loss, tally, _ = task.loss(model, batch, None)
    logits, _ = model(batch.inputs, None, lengths=batch.lengths)
    torch.testing.assert_close(loss, model.crf.nats(logits, batch.targets, batch.lengths).sum())
    assert tally.nats.item() == pytest.approx(loss.item(), rel=1e-5)
    torch.autograd.grad(loss, list(model.parameters()))  # each has a gradient
    scores = measure(task, model, "val")
    assert isinstance(scores, TagScores) and int(scores.count) == 30
    decoded = model.crf.decode(logits, batch.lengths)
    found, _ = task.measure(model, batch, None)
    assert int(found.tally.correct) == int((decoded == batch.targets).sum())


@pytest.mark.parametrize("crf", [False, True])
def test_a_document_among_longer_ones_is_judged_as_it_is_alone(tmp_path: Path, crf: bool) -> None:
    task = task_of(tmp_path, documents="lines", model={"crf": crf})
    model = task.model().eval()
    batch = next(batch for batch in task.batches("val") if batch.lengths is not None)
    assert batch.lengths is not None
    alone = [Batch(batch.inputs[:n, [b]], batch.targets[:n, [b]], None, False) for b, n in enumerate(batch.lengths.tolist())]
    losses = torch.stack([task.loss(model, one, None)[0] for one in alone])
    torch.testing.assert_close(task.loss(model, batch, None)[0], losses.sum())
    together, *others = (task.measure(model, one, None)[0].tally for one in (batch, *alone))
    assert together.nats.item() == pytest.approx(sum(one.nats.item() for one in others), rel=1e-5)
    assert int(together.correct) == sum(int(one.correct) for one in others)


def test_every_parameter_has_a_gradient(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    model = task.model()
    loss, _, _ = task.loss(model, next(task.batches("train")), None)
    learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(loss, list(learned.values()))
    assert "decision" not in learned and all(gradient.any() for gradient in gradients)


def scores_of(truth: str, answers: str, labels: tuple[str, ...] = ("O", "，", "。", "？")) -> TagScores:
    there, said = (torch.tensor([labels.index(c) for c in text]) for text in (truth, answers))
    tally = Tally(torch.tensor(1.0), torch.tensor(len(truth)), (there == said).sum())
    return TagScores.of_marks(tally, Confusion.of(there, said, len(labels)), labels, ())


def test_figures_of_marks() -> None:
    scores = scores_of("OO，。，O", "O，，O。O") + scores_of("。", "。")
    found = scores.as_metrics("val_")
    assert found["val_accuracy"] == 4 / 7
    assert (found["val_segmentation_precision"], found["val_segmentation_recall"], found["val_segmentation_f1"]) == (3 / 4, 3 / 4, 3 / 4)
    # of two commas one is found, and two were answered; the same of full stops
    assert found["val_f1"] == found["val_mean_f1"] == pytest.approx(0.5)
    assert {"val_nats_per_char", "val_bits_per_char", "val_precision", "val_recall"} <= found.keys()
    assert scores.describe().splitlines() == [
        "label  precision  recall     F1  there  answered",
        "，         50.0%   50.0%  50.0%      2         2",
        "。         50.0%   50.0%  50.0%      2         2",
        "？          0.0%    0.0%   0.0%      0         0",
        "any        75.0%   75.0%  75.0%      4         4",
    ]


def test_figures_of_pauses() -> None:
    found = scores_of("OSSO", "SSOO", ("O", "S")).as_metrics()
    assert (found["precision"], found["recall"], found["f1"]) == (0.5, 0.5, 0.5) and "segmentation_f1" not in found


class Said(nn.Module):
    """Says what it is told of each batch."""

    def __init__(self, answers: Tensor, labels: int) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(()))
        self.logits = F.one_hot(answers, labels).float()

    def forward(self, inputs: Tensor, state: object, **_: object) -> tuple[Tensor, tuple[()]]:
        return self.logits, ()


def test_figures_of_spans_are_of_whole_spans(tmp_path: Path) -> None:
    task = columns(tmp_path)
    b_loc, b_per, i_loc, o = range(4)
    targets = torch.tensor([[b_per, o, b_loc, i_loc, o], [b_per, o, b_loc, i_loc, IGNORED]]).t()
    answers = torch.tensor([[b_per, b_per, b_loc, i_loc, o], [o, o, b_loc, o, b_loc]]).t()
    scores, _ = task.measure(Said(answers, 4), Batch(torch.zeros_like(targets), targets, None, continues=False), None)
    found = scores.as_metrics()
    assert (found["precision"], found["recall"], found["f1"]) == (2 / 4, 2 / 4, 2 / 4)
    assert isinstance(scores, TagScores) and scores.describe().splitlines()[1:] == [
        "LOC        50.0%   50.0%  50.0%      2         2",
        "PER        50.0%   50.0%  50.0%      2         2",
        "all        50.0%   50.0%  50.0%      4         4",
    ]


def test_the_decision_is_the_best_for_f1_and_kept_by_the_model(tmp_path: Path) -> None:
    """A model that finds half of the marks likelier than none, and the second mark never the likeliest."""
    generator = torch.Generator().manual_seed(1)
    truth = torch.randint(0, 4, (4000,), generator=generator).clamp(min=1) - 1  # O half of the time, then labels 1 and 2
    logits = torch.randn(4000, 3, generator=generator) + 2.5 * F.one_hot(truth, 3) + torch.tensor([2.5, 0.0, -1.5])
    plain = torch.zeros(3)
    chosen = best_decision(logits, truth)

    def figures(decision: Tensor) -> tuple[float, float]:
        margin = logits[:, 1:].logsumexp(-1) - logits[:, 0]
        answers = torch.where(margin > decision[0], (logits + decision)[:, 1:].argmax(-1) + 1, 0)
        scores = TagScores.of_marks(Tally.zero(), Confusion.of(truth, answers, 3), ("O", "，", "。"), ())
        counts = scores.spans.f1()
        any_mark = (answers > 0, truth > 0)
        both = (any_mark[0] & any_mark[1]).sum()
        return float(2 * both / (any_mark[0].sum() + any_mark[1].sum())), float(counts.mean())

    assert figures(chosen)[0] > figures(plain)[0] + 0.05 and figures(chosen)[1] > figures(plain)[1] + 0.1
    assert figures(chosen)[0] >= max(figures(torch.tensor([t / 10, 0.0, 0.0]))[0] for t in range(-40, 41)) - 1e-3


def test_settling_changes_what_is_answered_and_not_what_is_believed(tmp_path: Path) -> None:
    task = task_of(tmp_path, val_fraction=0.4)
    model, average = task.model(), task.model()
    before = measure(task, model, "val")
    settled = task.settle([model, average], before)
    assert isinstance(model, CharRNN) and model.decision is not None and model.decision.any()
    assert isinstance(average, CharRNN) and average.decision is not None and torch.equal(model.decision, average.decision)
    again = measure(task, model, "val").as_metrics()
    assert settled.as_metrics() == pytest.approx(again, abs=2e-3)
    assert again["segmentation_f1"] > before.as_metrics()["segmentation_f1"]
    assert again["nats_per_char"] == before.as_metrics()["nats_per_char"]


def test_a_preview_shows_the_text_labelled(tmp_path: Path) -> None:
    task = task_of(tmp_path, documents="lines")
    shown = task.preview(task.model(), torch.Generator())
    read = "".join(c for c in shown if c not in "，。？\n")
    assert 100 < len(read) <= 200 and read.startswith(task.vocabulary.decode(task.splits["val"].ids[:50].tolist()))
    pauses = task_of(tmp_path, documents="lines", labels="segmentation")
    pausing = pauses.model()
    assert isinstance(pausing, CharRNN)
    pausing.head.bias.data[1] = 9.0  # it is sure of a pause everywhere
    shown = pauses.preview(pausing, torch.Generator())
    assert set(shown) <= set(pauses.vocabulary.characters) - set("，。？") | set("|\n\ufffd") and "|" in shown
    spans = columns(tmp_path)
    model = spans.model()
    assert isinstance(model, CharRNN)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([1.0, 0, 0, 0]))
    assert spans.preview(model, torch.Generator()).splitlines()[0].count(" LOC]") == 5


@pytest.mark.parametrize(
    "sections, message",
    [
        (
            {"train": {"class_weights": {"，": 1.0, "．": 2.0}}},
            r"^train.class_weights: no label '．'; expected some of O, ，, 。, ？$",
        ),
        ({"marks": "，天"}, r"^data.marks: '天' is neither punctuation nor white space; expected marks such as ，。？$"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        task_of(tmp_path, **sections)


def test_a_val_split_of_marks_alone_is_none(tmp_path: Path) -> None:
    """It has characters, and not one to label: as without a val split, and said so."""
    task = task_of(tmp_path, "天地。玄黄" * 20 + "。" * 8, val_fraction=0.05)
    assert len(task.corpus.split("val")) > 2 and not can_be_scored(task)
    assert any(note.startswith("the val split holds no characters") for note in task.notes())


def test_marks_that_the_text_has_not_are_refused(tmp_path: Path) -> None:
    expected = r"^data.marks '§；': none of them stands in what is trained on; name marks that the text has$"
    with pytest.raises(DataError, match=expected):
        task_of(tmp_path, marks="§；")


def test_a_split_without_characters_is_refused(tmp_path: Path) -> None:
    task = task_of(tmp_path, val_fraction=0.0)
    with pytest.raises(DataError, match=r"^split 'test': holds no characters to label; expected some, so raise data.test_fraction"):
        next(task.batches("test"))
    with pytest.raises(UserError, match=r"^split 'vla': there is no such split; expected train, val, test; did you mean 'val'\?$"):
        next(task.batches("vla"))
    assert any(note.startswith("the val split holds no characters") for note in task.notes())
