"""Task caption: captions beside their pictures, the loss against one of each caption alone, whether the model looks, fragments."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from charrnn.checkpoint import Loaded, load_model, save_model
from charrnn.config import Config, DecodingConfig, build_config
from charrnn.data.batch import IGNORED, Batch
from charrnn.evaluation import measure
from charrnn.finetuning import prepare
from charrnn.models.captioner import Captioner
from charrnn.run_directory import RunDirectory
from charrnn.sampling import evaluating
from charrnn.tasks import load_task
from charrnn.tasks.caption import PREVIEWED, Captioning, CaptionScores, Written
from charrnn.tasks.looking import Looking
from charrnn.training import Trainer
from tests.cli.learning import trained
from tests.test_training import Listener

SHAPES = Path(__file__).parents[2] / "data/sample/shapes"
WAYS = ["first_step", "first_input", "attention"]
CNN = {"width": 6, "stages": 3}
FRAGMENTS: dict[str, Any] = {"cnn": CNN | {"fragments": {"count": 80, "length": 3, "weight": 0.5}}}


def rows(language: str = "") -> list[tuple[str, str]]:
    lines = (SHAPES / f"captions{language}.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [(name, text) for name, text in (line.split("\t") for line in lines)]


def config(folder: Path, written: list[tuple[str, str]], model: dict[str, Any], **data: Any) -> Config:
    """`written`: the picture and the caption of each row."""
    folder.mkdir(exist_ok=True)
    manifest = folder / "captions.tsv"
    manifest.write_text("".join(f"{name}\t{text}\n" for name, text in [("image", "caption"), *written]), encoding="utf-8")
    images = {"size": 32, "folder": str(SHAPES)}
    known = {"vocabulary": {"include": "".join(sorted({character for _, text in written for character in text}))}}  # whatever the split
    return build_config(
        {
            "task": "caption",
            "run": str(folder / "run"),
            "device": "cpu",
            "data": {"path": str(manifest), "val_fraction": 0.25, "images": images, "cache": str(folder / "cache")} | known | data,
            "model": {"embedding_size": 12, "hidden_size": 48, "cnn": CNN, "decoder": {"attention_size": 12}} | model,
            "train": {"max_steps": 1, "batch_size": 6, "precision": "fp32"},
        },
        "test",
    )


def task(folder: Path, written: list[tuple[str, str]] | None = None, *, data: dict[str, Any] | None = None, **model: Any) -> Captioning:
    return cast(Captioning, load_task(config(folder, rows()[:16] if written is None else written, model, **(data or {}))))


def both_languages(count: int) -> list[tuple[str, str]]:
    """Of each picture a caption in English, and of every other one in Chinese too."""
    english, chinese = rows()[:count], rows("-zh")[:count]
    return [row for at in range(count) for row in (english[at], *chinese[at : at + 1 - at % 2])]


def texts(task: Captioning, batch: Batch) -> list[str]:
    """The captions of a batch, of which `end` is the last character."""
    found = []
    for column in batch.targets.t().tolist():
        ids = [i for i in column if i != IGNORED]
        assert ids[-1] == task.vocabulary.end and column[: len(ids)] == ids
        found.append(task.vocabulary.decode(ids[:-1]))
    return found


def pairs(task: Captioning, batches: list[Batch]) -> list[tuple[str, str]]:
    """Picture and caption of each column."""
    found = []
    for batch in batches:
        assert batch.pictures is not None and len(batch.names) == batch.inputs.size(0)
        found += [(batch.names[p], text) for p, text in zip(batch.pictures.tolist(), texts(task, batch))]
    return found


def learned(task: Captioning, steps: int, rate: float = 1e-2) -> Captioner:
    model, _ = trained(task, steps, rate)
    assert isinstance(model, Captioner)
    return model


def looked(task: Captioning, model: Captioner, split: str = "train") -> Looking:
    return task.examine(model, split, measure(task, model, split))


# Batches


def test_an_epoch_has_each_caption_once_beside_its_picture(tmp_path: Path) -> None:
    written = both_languages(12)
    built = task(tmp_path, written)
    names = {(Path(name).name, text) for name, text in written}
    epochs = [list(built.batches("train", epoch=epoch)) for epoch in (0, 0, 1)]
    once, again, other = (pairs(built, batches) for batches in epochs)
    assert once == again != other and sorted(once) == sorted(other)
    val = pairs(built, list(built.batches("val")))
    assert {*once, *val} == names and len(once) + len(val) == len(written) == 18
    assert {name for name, _ in once}.isdisjoint(name for name, _ in val)
    assert len(epochs[0]) == built.steps_per_epoch() and pairs(built, list(built.batches("train", epoch=1, first=1))) == pairs(
        built, epochs[2][1:]
    )


def test_measured_is_each_picture_in_one_batch_with_all_its_captions(tmp_path: Path) -> None:
    written = both_languages(12)
    built = task(tmp_path, written, data={"val_fraction": 0.5})
    batches = list(built.batches("val"))
    names = [name for batch in batches for name in batch.names]
    assert len(names) == len(set(names)) == 6 and len(batches) > 1
    scores = measure(built, built.model(), "val")
    assert isinstance(scores, CaptionScores)
    truths = {one.name: sorted(one.captions) for one in scores.written}
    assert truths == {name: sorted(text for path, text in written if Path(path).name == name) for name in names}


def test_pictures_change_from_epoch_to_epoch_in_training_alone(tmp_path: Path) -> None:
    images = {"size": 32, "folder": str(SHAPES), "augment": {"color": 0.3, "crop": 0.1}}
    built = task(tmp_path, data={"images": images})

    def seen(split: str, epoch: int) -> dict[str, Tensor]:
        return {name: pixels for batch in built.batches(split, epoch=epoch) for name, pixels in zip(batch.names, batch.inputs)}

    first, again, second = (seen("train", epoch) for epoch in (0, 0, 1))
    assert first.keys() == second.keys() and len(first) == 12
    assert all(torch.equal(first[name], again[name]) and not torch.equal(first[name], second[name]) for name in first)
    val, later = seen("val", 0), seen("val", 1)
    assert all(torch.equal(val[name], later[name]) for name in val)


# Loss


@pytest.mark.parametrize("way", WAYS)
def test_the_loss_is_that_of_each_caption_alone_character_by_character(tmp_path: Path, way: str) -> None:
    built = task(tmp_path, both_languages(8), image_as=way)
    model = built.model().eval()
    vocabulary = built.vocabulary
    batch = next(iter(built.batches("train")))
    assert batch.pictures is not None and len(batch.names) < batch.targets.size(1)
    tensor, tally, _ = built.loss(model, batch, None)
    loss, nats, right, asked = tensor.detach(), 0.0, 0, 0
    with torch.no_grad():
        for picture, text in zip(batch.pictures.tolist(), texts(built, batch)):
            source = model.encode(batch.inputs[picture : picture + 1])
            place, before = model.start(source), vocabulary.end
            for i in [*(vocabulary.id(c) for c in text), vocabulary.end]:
                logits, place = model.next(torch.tensor([before]), place, source)
                nats -= float(logits.double().log_softmax(-1)[0, i])
                right, asked, before = right + (int(logits.argmax()) == i), asked + 1, i
    assert float(loss) == pytest.approx(nats, rel=1e-5) and float(tally.nats) == pytest.approx(nats, rel=1e-5)
    assert (int(tally.count), int(tally.correct)) == (asked, right)
    assert tally.as_metrics()["nats_per_char"] == pytest.approx(nats / asked, rel=1e-5)


def test_smoothed_labels_change_what_is_learned_and_not_what_is_told(tmp_path: Path) -> None:
    built = task(tmp_path)
    model = built.model().eval()
    batch = next(iter(built.batches("train")))
    (plain, tally, _), (smoothed, same, _) = (built.loss(model, batch, None, label_smoothing=share) for share in (0.0, 0.2))
    assert float(smoothed.detach()) != float(plain.detach()) == pytest.approx(float(tally.nats)) and float(same.nats) == float(tally.nats)


def test_what_a_model_does_not_know_is_read_and_not_asked(tmp_path: Path) -> None:
    built = task(tmp_path)
    own = tmp_path / "own.tsv"
    name, text = rows()[0]
    own.write_text(f"image\tcaption\n{name}\t{text} é\n", encoding="utf-8")
    strange = Captioning.of_file(built.config, built.vocabulary, (), own)
    scores = measure(strange, built.model(), "test")
    assert isinstance(scores, CaptionScores) and int(scores.count) == len(text) + 2  # the space before it, and the end
    assert scores.written[0].captions == (f"{text} \ufffd",)


# What is written


def test_scores_count_what_is_right_cut_off_and_alike(tmp_path: Path) -> None:
    built = task(tmp_path)
    scores = measure(built, built.model(), "val")
    assert isinstance(scores, CaptionScores)
    captions = ("a red circle", "one circle, red")
    written = [Written(f"{n}.png", captions, answer, n < 3) for n, answer in enumerate((captions[1], "a star", "a star", "a star"))]
    found = replace(scores, written=tuple(written))
    metrics = found.as_metrics("val_")
    assert metrics["val_caption_accuracy"] == 0.25 and metrics["val_same_caption"] == 0.75 and found.commonest() == ("a star", 3)
    said = found.describe()
    assert "1 of 4 pictures have what was written among their captions" in said and "1 were cut off at decoding.max_length" in said
    assert "the model has not learned to look" not in said
    assert (
        "11 of them are told of alike, a star: the model has not learned to look"
        in replace(scores, written=tuple([*written[:1], *written[1:2] * 11][1:])).describe()
    )
    both = found + replace(found, written=found.written[1:])
    assert len(both.written) == 7 and both.right() == 1 and int(both.count) == 2 * int(scores.count)


# Whether it looks


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Captioning, Captioner]:
    """A model that has learned to look."""
    built = task(tmp_path_factory.mktemp("seeing"), data={"val_fraction": 0.0})
    return built, learned(built, 150)


def test_with_another_picture_or_none_a_model_that_looks_predicts_worse(seeing: tuple[Captioning, Captioner]) -> None:
    built, model = seeing
    found = looked(built, model)
    assert found.shuffled is not None and found.recall is not None and (found.pictures, found.captions, found.left_out) == (16, 16, 0)
    assert found.nats_per_char == pytest.approx(measure(built, model, "train").as_metrics()["nats_per_char"], rel=1e-5)
    for other in (found.shuffled, found.none):
        assert other.more.value == pytest.approx(other.nats_per_char - found.nats_per_char)
        assert other.more.value > 3 * other.more.error > 0 and other.nats_per_char > found.nats_per_char + 0.03
    recall = found.recall
    assert (recall.captions, recall.searched) == (16, 16)
    assert recall.first.value > 1 / 16 + 5 * recall.first.error and recall.ten.value > 10 / 16
    metrics = found.as_metrics()
    keys = ("right_nats_per_char", "shuffled_nats_per_char", "no_picture_nats_per_char")
    right, *others = (cast(float, metrics[key]) for key in keys)
    assert all(right < other for other in others)
    said = found.describe()
    assert "another picture, shuffled" in said and "no picture" in said and "the right picture among 16, by a caption's likelihood" in said


@pytest.mark.parametrize("way", ["first_step", "first_input"])
def test_a_model_that_ignores_its_picture_loses_nothing_without_and_finds_it_by_chance(tmp_path: Path, way: str) -> None:
    built = task(tmp_path, rows()[:24], image_as=way, data={"val_fraction": 0.0})
    model = built.model()
    assert model.teller is not None
    torch.nn.init.zeros_(model.teller.image.weight)
    found = looked(built, model)
    assert found.shuffled is not None and found.recall is not None
    for other in (found.shuffled, found.none):
        assert (other.more.value, other.more.error) == (0.0, 0.0) and other.nats_per_char == found.nats_per_char
    assert found.recall.searched == 24
    assert (found.recall.first.value, found.recall.ten.value) == pytest.approx((1 / 24, 10 / 24))


def test_one_content_is_never_taken_for_another(tmp_path: Path) -> None:
    """A single picture under several names leaves nothing to compare with."""
    content = (SHAPES / rows()[0][0]).read_bytes()
    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(content)
    images = {"size": 32, "folder": str(tmp_path)}
    built = task(tmp_path, [(f"{n}.png", "a red star") for n in range(3)], data={"val_fraction": 0.0, "images": images})
    found = looked(built, built.model())
    assert found.shuffled is None and found.recall is None and found.none.nats_per_char > 0
    assert "shuffled" not in found.describe() and "shuffled_nats_per_char" not in found.as_metrics()


def test_the_figures_follow_from_the_seed_and_the_model_is_as_it_was(seeing: tuple[Captioning, Captioner]) -> None:
    built, model = seeing
    model.train()
    first, again = (looked(built, model) for _ in range(2))
    assert first == again and model.training
    other = cast(Captioning, load_task(built.config.model_copy(update={"seed": 7})))
    assert looked(other, model).shuffled != first.shuffled


def test_without_sacrebleu_the_rest_is_told(seeing: tuple[Captioning, Captioner], monkeypatch: pytest.MonkeyPatch) -> None:
    built, model = seeing
    whole = looked(built, model)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    found = looked(built, model)
    assert whole.bleu is not None and len(whole.bleu.scores) == 4 and not whole.notes and "bleu_4" in whole.as_metrics()
    assert found.bleu is None and found.shuffled == whole.shuffled and "bleu_1" not in found.as_metrics()
    assert found.notes == ("BLEU is left out, for it needs sacrebleu, which is not installed; pip install 'charrnn[bleu]'",)


# Fragments


@pytest.fixture
def asked(tmp_path: Path) -> Captioning:
    return task(tmp_path, rows()[:24], **FRAGMENTS)


def fragments_of(task: Captioning) -> list[str]:
    """The commonest strings of three characters of train, not in more than half of its captions nor in fewer than five."""
    captions = [text for batch in task.batches("train") for text in texts(task, batch)]
    counts = {c[at : at + 3]: 0 for c in captions for at in range(len(c) - 2)}
    for part in counts:
        counts[part] = sum(part in caption for caption in captions)
    kept = [part for part in counts if 5 <= counts[part] <= len(captions) / 2]
    return sorted(kept, key=lambda part: [task.vocabulary.id(c) for c in part])


def test_the_loss_asks_for_the_fragments_of_each_caption(asked: Captioning) -> None:
    parts = fragments_of(asked)
    assert 5 < len(parts) < 80
    model = asked.model().eval()
    assert model.fragments is not None
    torch.nn.init.normal_(model.fragments.weight, std=0.1)
    batch = next(iter(asked.batches("train")))
    loss, tally, _ = asked.loss(model, batch, None)
    logits = model.fragment_logits(model.encode(batch.inputs)).detach().double()  # (P, K)
    missed = 0.0
    assert batch.pictures is not None
    for picture, text in zip(batch.pictures.tolist(), texts(asked, batch)):
        for k, part in enumerate(parts):
            sign = 1 if part in text else -1
            missed += math.log1p(math.exp(-sign * float(logits[picture, k])))
    assert float(loss.detach()) == pytest.approx(float(tally.nats) + 0.5 * missed, rel=1e-5) and missed > 1
    torch.autograd.backward(loss)
    assert model.fragments.weight.grad is not None and bool(model.fragments.weight.grad[: len(parts)].any())


def test_at_first_each_fragment_is_as_likely_as_it_is_frequent(asked: Captioning) -> None:
    model = asked.model()
    captions = [text for batch in asked.batches("train") for text in texts(asked, batch)]
    shares = [sum(part in caption for caption in captions) / len(captions) for part in fragments_of(asked)]
    batch = next(iter(asked.batches("train")))
    found = torch.sigmoid(model.fragment_logits(model.encode(batch.inputs)))
    for row in found.tolist():
        assert row[: len(shares)] == pytest.approx(shares, abs=1e-5)


def test_what_is_measured_and_written_needs_no_fragments(asked: Captioning, tmp_path: Path) -> None:
    model = asked.model()
    assert model.fragments is not None
    before = measure(asked, model, "val"), looked(asked, model, "val")
    for weight in model.fragments.parameters():
        torch.nn.init.constant_(weight, math.nan)
    assert (measure(asked, model, "val").as_metrics(), looked(asked, model, "val")) == (before[0].as_metrics(), before[1])
    own = tmp_path / "own.tsv"
    own.write_text("image\tcaption\n" + "".join(f"{name}\t{text}\n" for name, text in rows()[:3]), encoding="utf-8")
    file = Captioning.of_file(asked.config, asked.vocabulary, (), own)  # without captions to find any in
    scores = measure(file, model, "test")
    assert isinstance(scores, CaptionScores) and len(scores.written) == 3 and math.isfinite(scores.as_metrics()["nats_per_char"])
    with evaluating(model):
        assert asked.preview(model, torch.Generator()).count("\n") == 4


def begun_with(loaded: Loaded, wanted: Config, folder: Path) -> Captioner:
    built = load_task(prepare(wanted, loaded))
    trainer = Trainer(built, RunDirectory(folder), Listener(), torch.device("cpu"))
    trainer.begin_with(loaded)
    return cast(Captioner, trainer.model)


def test_another_text_begins_with_fragments_of_its_own(asked: Captioning, tmp_path: Path) -> None:
    model = learned(asked, 3)
    save_model(tmp_path / "m.safetensors", model, asked.config, asked.vocabulary, 3, {}, ())
    loaded = load_model(tmp_path / "m.safetensors")
    assert any(name.startswith("fragments.") for name in loaded.weights)
    other = config(tmp_path / "other", rows("-zh")[:24], {"cnn": CNN | {"fragments": {"count": 9, "length": 2}}})
    begun = begun_with(loaded, other, tmp_path / "run")
    fresh = cast(Captioning, load_task(prepare(other, loaded))).model()
    assert begun.fragments is not None and fresh.fragments is not None and begun.encoder is not None and model.encoder is not None
    for own, expected in zip(begun.fragments.parameters(), fresh.fragments.parameters()):
        assert torch.equal(own, expected)
    for own, kept in zip(begun.encoder.parameters(), model.encoder.parameters()):
        assert torch.equal(own, kept)
    without = begun_with(loaded, config(tmp_path / "without", rows("-zh")[:24], {}), tmp_path / "run-without")
    assert without.fragments is None


@pytest.mark.parametrize("given, length", [({}, 12), ({"max_length": 30}, 30)])
def test_a_caption_without_an_end_is_cut_off_by_the_longest_that_was_learned_from(
    tmp_path: Path, given: dict[str, int], length: int
) -> None:
    names = [name for name, _ in rows()[:9]]
    written = [(name, "abcdefgh"[: 1 + i % 8]) for i, name in enumerate(names)]
    settings = config(tmp_path, written, {}, val_fraction=0.0).model_copy(update={"decoding": DecodingConfig.model_validate(given)})
    made = cast(Captioning, load_task(settings))
    assert made.config.decoding.max_length == length
    model = made.model()
    with torch.no_grad():
        model._decoder.head.bias[made.vocabulary.end] = -30.0
    assert [len(line.partition("  (")[0]) for line in made.preview(model, torch.Generator()).splitlines()] == [length] * PREVIEWED
    save_model(tmp_path / "m.safetensors", model, made.config, made.vocabulary, 1, {})
    assert load_model(tmp_path / "m.safetensors").config.decoding.max_length == length
