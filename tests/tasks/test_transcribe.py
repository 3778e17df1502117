"""Task transcribe: utterances in batches, the loss against one by hand of each utterance alone, and what a person is told.

The recordings are ready features: each character is a few frames of a pattern of its own.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from charrnn.checkpoint import load_model
from charrnn.config import Config
from charrnn.data.batch import IGNORED, Batch
from charrnn.data.features import finish
from charrnn.errors import DataError, UserError
from charrnn.evaluation import measure
from charrnn.gradients import Shards
from charrnn.metrics import Edits, Tally
from charrnn.models.transcriber import Transcriber
from charrnn.tasks import load_task
from charrnn.tasks.transcribe import Judged, TranscribeScores, Transcribing, pad_frames
from charrnn.training import Outcome, StepReport, train

MELS = 3
WORDS = ["ab", "a", "bca", "cc", "abca", "b", "cab", "ac b", "aaab", "bb", "c", "cba"]


def pattern(character: str, frames: int) -> list[list[float]]:
    return [[math.cos(ord(character) * (k + 1)) for k in range(MELS)]] * frames


def spoken(folder: Path, words: list[str], name: str = "all", *, slowly: int = 4) -> Path:
    """A manifest and its recordings, a few more or fewer frames a character, and noise."""
    folder.mkdir(parents=True, exist_ok=True)
    random, lines = np.random.default_rng(3), ["audio\ttranscript"]
    for n, word in enumerate(words):
        frames = [frame for c in word for frame in pattern(c, slowly + (n + ord(c)) % 3)]
        np.save(folder / f"{name}-{n}.npy", np.array(frames) + 0.1 * random.standard_normal((len(frames), MELS)))
        lines.append(f"{name}-{n}.npy\t{word}")
    (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / f"{name}.tsv"


def config(folder: Path, path: Path, sections: dict[str, dict[str, Any]]) -> Config:
    decoder = {"hidden_size": 8, "attention_size": 6, "location_filters": 2, "location_width": 2}
    defaults: dict[str, dict[str, Any]] = {
        "data": {"path": str(path), "val_fraction": 0.25, "cache": str(folder / "cache"), "audio": {"num_mels": MELS}},
        "model": {"embedding_size": 5, "hidden_size": 6, "pyramid": {"levels": 1}, "decoder": decoder},
        "train": {"max_steps": 1, "batch_size": 4},
        "decoding": {},
    }
    merged: dict[str, Any] = {name: defaults[name] | sections.get(name, {}) for name in defaults}
    merged["data"]["audio"] = defaults["data"]["audio"] | sections.get("data", {}).get("audio", {})
    merged["model"]["decoder"] = decoder | sections.get("model", {}).get("decoder", {})
    return Config.model_validate({"task": "transcribe", "run": str(folder / "run"), "device": "cpu"} | merged)


def task(folder: Path, words: list[str] = WORDS, **sections: dict[str, Any]) -> Transcribing:
    built = load_task(config(folder, spoken(folder, words), sections))
    assert isinstance(built, Transcribing)
    return built


def lengths_of(batch: Batch) -> list[int]:
    return [len(batch.inputs)] * batch.inputs.size(1) if batch.lengths is None else batch.lengths.tolist()


def texts(task: Transcribing, batches: list[Batch]) -> list[str]:
    found = []
    for batch in batches:
        for column in batch.targets.T.tolist():
            text = [i for i in column if i != IGNORED]
            assert text[-1] == task.vocabulary.end and column == text + [IGNORED] * (len(column) - len(text))
            found.append("".join(task.vocabulary.decode([i]) or "⁇" for i in text[:-1]))
    return found


# Batches


def test_an_epoch_reads_each_utterance_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    built = task(tmp_path)
    epochs = [list(built.batches("train", epoch=epoch)) for epoch in (0, 0, 1)]
    assert len(epochs[0]) == built.steps_per_epoch() == 3
    once, again, other = (texts(built, batches) for batches in epochs)
    assert once == again != other and sorted(once) == sorted(other)
    val = texts(built, list(built.batches("val", epoch=5)))
    assert val == texts(built, list(built.batches("val"))) and len(val) == 3
    assert sorted([*once, *val]) == sorted(WORDS)
    assert texts(built, list(built.batches("train", epoch=1, first=1))) == texts(built, epochs[2][1:])


def test_frames_are_those_of_their_utterance_with_zeros_behind(tmp_path: Path) -> None:
    built = task(tmp_path)
    for split in ("train", "val"):
        for batch in built.batches(split):
            assert batch.inputs.dtype == torch.float32 and batch.inputs.shape[1:] == (batch.targets.size(1), MELS)
            lengths = lengths_of(batch)
            assert max(lengths) == len(batch.inputs) and (batch.lengths is not None) == (len(set(lengths)) > 1)
            assert batch.chars == int((batch.targets != IGNORED).sum()) and not batch.continues
            for b, (name, length) in enumerate(zip(batch.names, lengths)):
                features = torch.from_numpy(np.load(tmp_path / name)).float()
                assert torch.equal(batch.inputs[:length, b], finish(features, built.config.data.audio)) and len(features) == length
                assert not batch.inputs[length:, b].any()
                assert texts(built, [batch])[b] == WORDS[int(name.removesuffix(".npy").partition("-")[2])]


def test_padding_by_hand() -> None:
    frames = [torch.ones(2, 2), torch.full((1, 2), 2.0)]
    batch = pad_frames(frames, [np.array([3, 1], dtype=np.uint8), np.array([2, 4, 1], dtype=np.uint8)], ("x", "y"))
    assert batch.inputs.tolist() == [[[1, 1], [2, 2]], [[1, 1], [0, 0]]] and batch.targets.tolist() == [[3, 2], [1, 4], [IGNORED, 1]]
    assert batch.lengths is not None and batch.lengths.tolist() == [2, 1] and batch.names == ("x", "y")
    assert pad_frames([torch.ones(2, 2)] * 2, [np.array([1])] * 2).lengths is None


AUGMENTED: dict[str, Any] = {"audio": {"augment": {"noise": 0.5, "speed": 0.2, "time_masks": 1}}}


def test_utterances_of_train_are_others_in_each_epoch_and_the_same_whenever_asked(tmp_path: Path) -> None:
    built, plain = task(tmp_path, data=AUGMENTED), task(tmp_path)

    def by_name(task: Transcribing, split: str, **options: Any) -> dict[str, Tensor]:
        return {
            name: batch.inputs[:length, b]
            for batch in task.batches(split, **options)
            for b, (name, length) in enumerate(zip(batch.names, lengths_of(batch)))
        }

    def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[bool]:
        return [torch.equal(a[name], b[name]) for name in a if name in b]

    first, again, second = (by_name(built, "train", epoch=epoch) for epoch in (3, 3, 4))
    assert first.keys() == second.keys() and all(same(first, again)) and not any(same(first, second))
    assert not any(same(first, by_name(plain, "train", epoch=3)))
    rest = by_name(built, "train", epoch=3, first=2)
    assert len(rest) < len(first) and all(same(rest, first))
    for epoch in (0, 7):
        assert all(same(by_name(built, "val", epoch=epoch), by_name(plain, "val")))
    other = load_task(built.config.model_copy(update={"seed": 2}))
    assert isinstance(other, Transcribing)
    assert not any(same(by_name(other, "train", epoch=3), first))


def test_statistics_are_those_of_train_before_any_augmentation(tmp_path: Path) -> None:
    built = task(tmp_path, data={"audio": {"normalization": "global", "deltas": 1, **AUGMENTED["audio"]}})
    model = built.model()
    assert model.mean is not None and model.deviation is not None
    places = built.recordings.split("train")
    read = torch.cat([finish(built.recordings.features(i), built.config.data.audio) for i in places]).double()
    assert read.size(1) == 2 * MELS
    torch.testing.assert_close(model.mean.data, read.mean(0).float())
    torch.testing.assert_close(model.deviation.data, read.std(0, correction=0).float())
    assert task(tmp_path).model().mean is None
    again = built.model()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))


# The loss


def by_hand(built: Transcribing, model: Transcriber, batch: Batch, smoothing: float = 0.0) -> tuple[Tensor, Tensor, int, int]:
    """The loss, the plain nats, what was asked and what was right, utterance by utterance without its padding."""
    loss, nats, count, correct = torch.zeros(()), torch.zeros(()), 0, 0
    weight, end = built.config.model.decoder.ctc_weight, built.vocabulary.end
    assert end is not None
    for b, length in enumerate(lengths_of(batch)):
        text = batch.targets[batch.targets[:, b] != IGNORED, b]
        heard = model.encode(batch.inputs[:length, b : b + 1], None)
        logits = model(heard, torch.cat([torch.tensor([end]), text[:-1]]).unsqueeze(1))[:, 0]
        known = text != built.vocabulary.unknown
        nll = -logits.log_softmax(-1)
        own = nll[known, text[known]]
        loss = loss + (1 - weight) * ((1 - smoothing) * own.sum() + smoothing * nll[known].mean(-1).sum())
        nats, count, correct = nats + own.sum(), count + int(known.sum()), correct + int((logits.argmax(-1) == text)[known].sum())
        if weight:
            ctc = model.ctc_logits(heard)
            assert ctc is not None
            said = text[(text > end)]
            long, wide = torch.tensor([len(ctc)]), torch.tensor([len(said)])
            found = F.ctc_loss(ctc.log_softmax(-1), said.unsqueeze(0), long, wide, reduction="sum")
            loss = loss + weight * torch.where(found.isinf(), 0.0, found)
    return loss, nats, count, correct


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("ctc_weight", [0.0, 0.4])
@pytest.mark.parametrize("max_size", [None, 2], ids=["all_known", "some_unknown"])
def test_loss_tally_and_gradients_are_those_of_each_utterance_alone(
    tmp_path: Path, max_size: int | None, ctc_weight: float, smoothing: float
) -> None:
    built = task(tmp_path, data={"vocabulary": {"max_size": max_size}}, model={"decoder": {"ctc_weight": ctc_weight}})
    model = built.model().train()
    ragged = [batch for batch in built.batches("train") if batch.lengths is not None]
    assert ragged and (built.corpus.unknown > 0) == (max_size is not None)
    for batch in ragged:
        loss, tally, state = built.loss(model, batch, None, label_smoothing=smoothing)
        expected, nats, count, correct = by_hand(built, model, batch, smoothing)
        torch.testing.assert_close(loss, expected)
        assert float(tally.nats) == pytest.approx(float(nats.detach()), rel=1e-5) and not tally.nats.requires_grad
        assert (int(tally.count), int(tally.correct), state) == (count, correct, ())
        parameters = [p for p in model.parameters() if p.requires_grad]
        assert len(parameters) == len(list(model.parameters()))
        for ours, theirs in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters)):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalization", ["utterance", "global"])
def test_every_parameter_learns(tmp_path: Path, normalization: str) -> None:
    built = task(tmp_path, data={"audio": {"normalization": normalization}}, model={"decoder": {"num_layers": 2}, "layer_norm": True})
    model = built.model().train()
    loss, _, _ = built.loss(model, next(built.batches("train")), None)
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(dict(model.named_parameters())) - set(learned) == ({"mean", "deviation"} if normalization == "global" else set())
    for name, grad in zip(learned, torch.autograd.grad(loss, list(learned.values()))):
        assert grad.isfinite().all() and grad.any(), name


def test_shards_give_the_gradient_of_the_whole(tmp_path: Path) -> None:
    """Also where no column of a shard is as long as the batch, nor its text."""
    built = task(tmp_path)
    model = built.model().train()
    batch = next(batch for batch in built.batches("train") if batch.lengths is not None and batch.lengths[0] < batch.lengths[-1])
    found = []
    for count in (1, 2, 4):
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        with Shards(built, model, count, precision=torch.float32, label_smoothing=0.0, scaler=scaler, seed=1) as shards:
            found.append(shards.gradients([batch]))
    for gradients, tally, scale in found[1:]:
        assert int(tally.count) == int(found[0][1].count)
        for got, expected in zip(gradients, found[0][0]):
            torch.testing.assert_close(got * scale.float(), expected * scale.float(), rtol=1e-4, atol=1e-6)


def test_texts_without_room_or_without_characters_cost_ctc_nothing(tmp_path: Path) -> None:
    """The steps cannot hold them; the decoder learns of them all the same. The note says how many there are."""
    words = ["aabb", "a", "ba"]
    spoken(tmp_path, words, slowly=4)
    np.save(tmp_path / "all-0.npy", np.ones((7, MELS)))  # 4 encoder steps; a blank between twins needs 6
    settings = config(tmp_path, tmp_path / "all.tsv", {"data": {"val_fraction": 0}})
    built = load_task(settings)
    assert isinstance(built, Transcribing)
    model = built.model().train()
    (batch,) = built.batches("train")
    loss, tally, _ = built.loss(model, batch, None)
    expected, *_ = by_hand(built, model, batch)
    torch.testing.assert_close(loss, expected)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    assert int(tally.count) == 10 and all(grad.isfinite().all() for grad in grads)
    fact = "1 utterance of train with fewer encoder steps than the characters need: CTC learns nothing of them"
    assert f"{fact}; lower model.pyramid.levels or data.audio.hop_length" in built.notes()

    unknown = built.vocabulary.unknown
    targets = batch.targets.masked_fill(batch.targets > 1, unknown)
    empty = Batch(batch.inputs, targets, batch.lengths, continues=False)
    loss, tally, _ = built.loss(model, empty, None)
    assert int(tally.count) == 3 and loss.isfinite() and float(loss.detach()) > 0


def test_unknown_characters_need_no_step_and_may_leave_twins_behind(tmp_path: Path) -> None:
    """Without the x that the vocabulary has no room for, aba is as it was, and axa is aa."""
    for text, steps, short in (("axa", 3, False), ("axa", 2, True), ("axxb", 2, False), ("axxb", 1, True)):
        folder = tmp_path / f"{text}{steps}"
        spoken(folder, [text, "aabbaabb"])
        np.save(folder / "all-0.npy", np.ones((2 * steps, MELS)))
        settings = config(folder, folder / "all.tsv", {"data": {"val_fraction": 0, "vocabulary": {"max_size": 2}}})
        assert any("CTC learns nothing" in note for note in load_task(settings).notes()) == short, (text, steps)


def test_the_model_is_told_as_often_as_the_configuration_says(tmp_path: Path) -> None:
    told, untold = (task(tmp_path, model={"decoder": {"teacher_forcing_rate": rate}}) for rate in (1.0, 0.0))
    model, batch = told.model().train(), next(told.batches("train"))
    with torch.no_grad():
        model.speller.head.weight.mul_(10)
    losses = [float(built.loss(model, batch, None, generator=torch.Generator().manual_seed(1))[0].detach()) for built in (told, untold)]
    assert losses[0] != losses[1]
    model.eval()
    assert untold.measure(model, batch, None)[0].tally.nats == told.measure(model, batch, None)[0].tally.nats


# What is measured


def fixed(built: Transcribing, answers: dict[int, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the search come to these texts, in the order of the batch."""
    from charrnn.decoding import Hypothesis
    from charrnn.tasks import transcribe

    ids = [Hypothesis(built.vocabulary.encode(answers[n]), [0.1], 0.0, True, torch.zeros(0, 1)) for n in sorted(answers)]
    monkeypatch.setattr(transcribe, "decode", lambda *_: ids)


def test_errors_by_hand_and_the_farthest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = task(tmp_path, train={"batch_size": 20}, data={"val_fraction": 0})
    (batch,) = built.batches("train")
    said = texts(built, [batch])
    answers = {n: {"ab": "ac", "a": "abc", "bb": "", "bca": "bca "}.get(text, text) for n, text in enumerate(said)}
    fixed(built, answers, monkeypatch)
    scores, state = built.measure(built.model().eval(), batch, None)
    total = sum(len(word) for word in WORDS)
    assert state == () and scores.as_metrics("val_")["val_char_error_rate"] == pytest.approx((1 + 2 + 2 + 1) / total)
    assert scores.as_metrics()["sentence_accuracy"] == pytest.approx(8 / 12)
    assert [(judged.truth, judged.answer, judged.rate) for judged in scores.worst] == [
        ("a", "abc", 2.0), ("bb", "", 1.0), ("ab", "ac", 0.5), ("bca", "bca ", pytest.approx(1 / 3)),
    ]  # fmt: skip
    assert all(WORDS[int(judged.name.removesuffix(".npy").partition("-")[2])] == judged.truth for judged in scores.worst)
    assert list(scores.as_metrics()) == [
        "nats_per_char", "bits_per_char", "perplexity", "accuracy", "char_error_rate", "word_error_rate", "sentence_accuracy",
    ]  # fmt: skip
    told = scores.describe().split("\n")
    assert told[0] == "8 of 12 utterances are right; the farthest from it:"
    assert told[1].split() == ["errors", "said", "written", "recording"] and told[2].split()[:3] == ["200.0%", "a", "abc"]


def judged(rate: float) -> TranscribeScores:
    return TranscribeScores(Tally.zero(), Edits.of("a", "b"), (Judged(f"{rate}.wav", "a", "b", rate),))


def test_the_worst_ten_of_all_batches_are_kept() -> None:
    total = judged(0.5)
    for rate in (0.1, 3.0, 0.2, *(1 + n / 10 for n in range(10))):
        total = total + judged(rate)
    assert [found.rate for found in total.worst] == [3.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 1.3, 1.2, 1.1]
    assert int(total.edits.count) == 14 and len(total.describe().split("\n")) == 12
    right = TranscribeScores(Tally.zero(), Edits.of("a", "a"), ())
    assert (right + right).describe() == "right: all of 2 utterances"


def test_a_split_is_measured_as_its_utterances_are_alone(tmp_path: Path) -> None:
    together, alone = task(tmp_path, train={"batch_size": 3}), task(tmp_path, train={"batch_size": 1})
    model = together.model()
    scores = [measure(built, model, "train").as_metrics() for built in (together, alone)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_an_unknown_character_is_an_error_and_is_not_asked_of_the_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    val = spoken(tmp_path / "val", ["aéb"], "val")
    built = task(tmp_path, data={"val_path": str(val)})
    (batch,) = built.batches("val")
    assert texts(built, [batch]) == ["a⁇b"]
    fixed(built, {0: "ab"}, monkeypatch)
    scores, _ = built.measure(built.model().eval(), batch, None)
    assert (int(scores.tally.count), int(scores.edits.char_edits), int(scores.edits.chars)) == (3, 1, 3)
    assert [(found.truth, found.answer) for found in scores.worst] == [("a\ufffdb", "ab")]
    share = 1 / len(built.corpus.ids)
    assert f"1 character ({share:.2%}) outside the vocabulary: never written, so errors in val and test, at {val}: line 2" in built.notes()


def test_the_search_is_that_of_the_configuration(tmp_path: Path) -> None:
    built = task(tmp_path, decoding={"max_length": 2, "beam_width": 3, "ctc_weight": 0.3})
    scores, _ = built.measure(built.model().eval(), next(built.batches("train")), None)
    assert all(len(found.answer) <= 2 for found in scores.worst) and scores.worst


# Learning


class Quiet:
    """A Reporter that remembers what was reached."""

    def __init__(self) -> None:
        self.reached: list[dict[str, float]] = []

    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def encoding(self, done: int, total: int) -> None: ...
    def stepped(self, step: int, progress: float) -> None: ...
    def step(self, report: StepReport) -> None: ...
    def done(self, outcome: Outcome) -> None: ...

    def evaluated(self, metrics: dict[str, float], sample: str, is_best: bool) -> None:
        self.reached.append(metrics)


LEARNING: dict[str, dict[str, Any]] = {
    "train": {"max_steps": 120, "batch_size": 6, "learning_rate": 0.02, "warmup_steps": 5, "evaluate_every": 10, "threads": 1},
    "model": {"embedding_size": 6, "hidden_size": 12, "decoder": {"hidden_size": 16}},
}


def test_a_few_utterances_are_learned_by_heart(tmp_path: Path) -> None:
    words = [word for word in WORDS if len(word) < 4]
    path = spoken(tmp_path, words)
    reporter = Quiet()
    outcome = train(config(tmp_path, path, LEARNING | {"data": {"val_path": str(path)}}), reporter=reporter)
    assert outcome.status == "finished" and outcome.best_by == ("char_error_rate", True)
    assert reporter.reached[0]["val_char_error_rate"] > 0 and outcome.best["val_sentence_accuracy"] == 1
    assert outcome.best["val_char_error_rate"] == outcome.best["val_word_error_rate"] == 0


def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    """In the middle of an epoch, with augmentation and dropout."""
    path = spoken(tmp_path, WORDS)
    sections = {"data": AUGMENTED, "model": LEARNING["model"] | {"dropout": {"output": 0.2, "input": 0.1}}}
    models = []
    for runs in ((8,), (4, 8)):
        for steps in runs:
            limits = {"max_steps": steps, "batch_size": 3, "schedule": "constant", "threads": 1, "precision": "fp32"}
            settings = config(tmp_path / str(len(runs)), path, sections | {"train": limits})
            train(settings, resume=steps > runs[0], reporter=Quiet())
        models.append(load_model(tmp_path / str(len(runs)) / "run/last.safetensors").weights)
    assert models[0].keys() == models[1].keys() and all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_a_run_whose_recordings_have_changed_does_not_go_on(tmp_path: Path) -> None:
    path = spoken(tmp_path, WORDS)
    sections = {"train": {"max_steps": 1, "threads": 1}}
    train(config(tmp_path, path, sections), reporter=Quiet())
    np.save(tmp_path / "all-0.npy", np.zeros((9, MELS)))
    with pytest.raises(UserError) as caught:
        train(config(tmp_path, path, {"train": {"max_steps": 2, "threads": 1}}), resume=True, reporter=Quiet())
    fact = "cannot resume: the recordings or their transcripts have changed since; put them back, or start another run with --init-from"
    assert str(caught.value) == f"{tmp_path / 'run'}: {fact} {tmp_path / 'run'}"


def test_a_preview_shows_what_is_written_and_what_was_said(tmp_path: Path) -> None:
    built = task(tmp_path)
    model = built.model()
    model.speller.head.bias.data[built.vocabulary.encode("c")[0]] = 1e3
    lines = built.preview(model, torch.Generator().manual_seed(1), length=4).split("\n")
    assert len(lines) == 3 and all(line.startswith("cccc  (said: ") for line in lines) and model.training
    model.speller.head.bias.data[1] = 1e6
    assert task(tmp_path, data={"val_fraction": 0}).preview(model, torch.Generator().manual_seed(1)).count("\n") == 4


# What a person is told


def test_the_protocol_is_filled_in(tmp_path: Path) -> None:
    built = task(tmp_path)
    assert (built.unit, built.best_by, built.labels) == ("char", ("char_error_rate", True), ())
    assert built.vocabulary.characters == " abc" and built.vocabulary.symbols == ("unknown", "end")
    assert [len(built.recordings.split(split)) for split in ("train", "val", "test")] == [9, 3, 0]


def test_notes_say_what_there_is_to_learn_from(tmp_path: Path) -> None:
    built = task(tmp_path, data={"val_fraction": 0, "audio": {"hop_length": 160}}, model={"pyramid": {"levels": 2, "reduction": 3}})
    minutes = sum(np.load(path).shape[0] for path in tmp_path.glob("*.npy")) / 100 / 60
    reads = "10 ms a frame, 90 ms an encoder step"
    assert f"12 utterances to train on, {minutes:,.1f} minutes; 0.0 for val, 0.0 for test; {reads}" in built.notes()
    assert (
        "the val split holds no utterance, so there is nothing to evaluate on; raise data.val_fraction or name data.val_path"
        in built.notes()
    )


def test_a_split_without_utterances_is_refused(tmp_path: Path) -> None:
    built = task(tmp_path, data={"val_fraction": 0})
    with pytest.raises(DataError) as caught:
        next(built.batches("val"))
    remedy = "raise data.val_fraction, name data.val_path or add utterances"
    assert str(caught.value) == f"split 'val': holds no utterance; expected some to transcribe, so {remedy}"
    with pytest.raises(UserError, match=r"^split 'vla': there is no such split; expected train, val, test; did you mean 'val'[?]$"):
        next(built.batches("vla"))


# A file of the user's own


def test_a_manifest_of_ones_own_is_whole_and_in_its_order(tmp_path: Path) -> None:
    built = task(tmp_path, data={"test_fraction": 0.25})
    path = spoken(tmp_path / "own", ["cab", "a", "dab", "a"], "own")
    other = Transcribing.of_file(built.config, built.vocabulary, (), path)
    assert [len(other.recordings.split(split)) for split in ("train", "val", "test")] == [0, 0, 4]
    found = [other.recordings.transcript(i).tolist() for i in other.recordings.split("test")]
    assert ["".join(built.vocabulary.decode([i]) or "⁇" for i in ids[:-1]) for ids in found] == ["cab", "a", "⁇ab", "a"]
    assert other.vocabulary is built.vocabulary and sorted(texts(other, list(other.batches("test")))) == ["a", "a", "cab", "⁇ab"]
    assert int(measure(other, built.model(), "test").count) == 11
    empty = tmp_path / "empty.tsv"
    empty.write_text("audio\ttranscript\n")
    with pytest.raises(DataError, match=r"empty.tsv: .*holds no"):
        Transcribing.of_file(built.config, built.vocabulary, (), empty)
