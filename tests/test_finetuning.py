"""A model goes on with another text: nothing that it knew is lost or moved, and what is new finds its place."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import nn

from charrnn.checkpoint import Loaded, build_model, load_model, save_model
from charrnn.config import Config, build_config, load_config
from charrnn.data.corpus import Corpus, load_corpus
from charrnn.data.vocabulary import SYMBOLS, Vocabulary
from charrnn.errors import CheckpointError, ConfigError, UserError
from charrnn.evaluation import per_char
from charrnn.finetuning import keeps_head, prepare, report, widen
from charrnn.models import build_architecture
from charrnn.models.char_rnn import CharRNN
from charrnn.models.transcriber import Transcriber
from charrnn.plain_yaml import parse_yaml
from charrnn.run_directory import RunDirectory
from charrnn.tasks import load_task
from charrnn.training import Trainer, plan, train
from tests.data.texts import text_stream
from tests.test_training import Listener, assert_same_run

OLD = "the cat sat on a mat, and on it sat a rat.\n" * 20
NEW = "Die Katze saß auf der Matte: müde, 猫。\n" * 20
SHAPES: list[dict[str, Any]] = [
    {"cell": "lstm", "embedding_size": 6},
    {"cell": "gru", "num_layers": 2, "layer_norm": True, "embedding_size": 5},
    {"cell": "rnn_tanh", "embedding_size": 8, "tied_embeddings": True},
]

Settings = Callable[..., Config]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "old.txt").write_text(OLD, encoding="utf-8")
    (tmp_path / "new.txt").write_text(NEW, encoding="utf-8")

    def build(text: str, *, data: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **train_: Any) -> Config:
        return build_config(
            {
                "run": str(tmp_path / f"run-{text}"),
                "device": "cpu",
                "data": {"path": str(tmp_path / f"{text}.txt"), "cache": str(tmp_path / "cache"), **(data or {})},
                "model": {"embedding_size": 6, "hidden_size": 8, **(model or {})},
                "train": {
                    "max_steps": 8, "batch_size": 4, "tbptt_window": 9, "evaluate_every": 4, "save_every": 4, "log_every": 2,
                    "precision": "fp32", "warmup_steps": 0, "learning_rate": 0.01, **train_,
                },
            },
            "test",
        )  # fmt: skip

    return build


def model_of(vocabulary: Vocabulary, path: Path, **shape: Any) -> Loaded:
    """A model that has an opinion on every id, in a file."""
    config = build_config({"data": {"path": "x"}, "model": {"hidden_size": 8, **shape}, "train": {"max_steps": 1}}, "test")
    torch.manual_seed(3)
    model = CharRNN(config.model, len(vocabulary))
    nn.init.normal_(model.head.bias)
    save_model(path, model, config, vocabulary, 1, {})
    return load_model(path)


def widened(loaded: Loaded, vocabulary: Vocabulary) -> nn.Module:
    return build_model(Loaded(widen(loaded, vocabulary), loaded.config, vocabulary, 0, {}, loaded.path)).double()


def bits(model: nn.Module, vocabulary: Vocabulary, text: str, documents: str = "none") -> list[float | None]:
    return [value for _, value in per_char(model, vocabulary, text_stream(vocabulary, text, documents))]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: str(shape["cell"]))
@pytest.mark.parametrize("ends", [False, True], ids=["stream", "documents"])
@given(old=st.text(min_size=2, max_size=12), new=st.text(max_size=12), data=st.data())
@examples(deadline=None, max_examples=12)
def test_no_text_scores_otherwise_before_the_first_step(
    shape: dict[str, Any], ends: bool, old: str, new: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also not where the new characters stand in it: they are read as before, and what is known is predicted as before."""
    known = "".join(sorted(set(old)))
    added = "".join(sorted(set(new) - set(known)))
    before = Vocabulary(SYMBOLS[:2] if ends else SYMBOLS[:1], known)
    after = Vocabulary(before.symbols, known + added)
    loaded = model_of(before, tmp_path_factory.getbasetemp() / "any.safetensors", **shape)
    text = data.draw(st.text(st.sampled_from(known + added), min_size=2, max_size=30))
    was, now = (bits(m, v, text) for m, v in ((build_model(loaded).double(), before), (widened(loaded, after), after)))
    for character, value, other in zip(text, was, now):
        if character in before and value is not None:
            assert other == pytest.approx(value, rel=1e-6, abs=1e-6)  # what is scored is rounded to float32


def test_documents_to_a_stream_and_back(tmp_path: Path) -> None:
    """The old model's `end` stays where it was; a new one is one more id that shares with `unknown`."""
    text = "the cat\nthe mat\n"
    known = "".join(sorted(set(text)))
    ended, plain = Vocabulary(SYMBOLS[:2], known), Vocabulary(SYMBOLS[:1], known)
    with_end = model_of(ended, tmp_path / "ended.safetensors")
    kept = widened(with_end, Vocabulary(SYMBOLS[:2], known + "猫"))
    assert bits(kept, Vocabulary(SYMBOLS[:2], known + "猫"), text, "lines") == pytest.approx(
        bits(build_model(with_end).double(), ended, text, "lines"), abs=1e-6
    )
    without = model_of(plain, tmp_path / "plain.safetensors")
    wider = Vocabulary(SYMBOLS[:2], known + "猫")
    was, now = bits(build_model(without).double(), plain, text), bits(widened(without, wider), wider, text)
    assert was[0] is None and now[0] is not None  # a document begins after the end of another, so now the first is asked for
    # The context of the first character is new, so only the weights can be compared, row by row.
    old_rows, rows = without.weights, widen(without, wider)
    for name in ("embedding.weight", "head.weight"):
        assert torch.equal(rows[name][2:-1], old_rows[name][1:])
        assert torch.equal(rows[name][[0, 1, -1]], old_rows[name][[0, 0, 0]])
    assert torch.equal(rows["head.bias"][2:-1], old_rows["head.bias"][1:])
    assert rows["head.bias"][[0, 1, -1]].tolist() == pytest.approx([float(old_rows["head.bias"][0]) - math.log(3)] * 3)


def test_the_same_characters_are_the_same_weights(tmp_path: Path) -> None:
    loaded = model_of(Vocabulary(SYMBOLS[:1], "ab"), tmp_path / "m.safetensors")
    for name, weight in widen(loaded, loaded.vocabulary).items():
        assert torch.equal(weight, loaded.weights[name]), name


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: str(shape["cell"]))
def test_a_run_that_goes_on_from_another(settings: Settings, tmp_path: Path, shape: dict[str, Any]) -> None:
    first, second = Listener(), Listener()
    train(settings("old", model=shape, max_steps=30), reporter=first)
    old = load_model(tmp_path / "run-old/best.safetensors")
    config = settings("new", model=shape, ema_decay=0.9, weight_decay=0.1)
    train(config, init_from=str(tmp_path / "run-old"), reporter=second)
    assert [note for note in second.notes if "kept" in note] == [
        f"{tmp_path}/run-old/best.safetensors: kept 16 characters, added 11 (':' 'D' 'K' 'M' 'f' 'u' 'z' 'ß' …), "
        "5 of the old do not occur in the new text"
    ]
    new = load_model(tmp_path / "run-new/best.safetensors")
    assert new.vocabulary.characters[:16] == old.vocabulary.characters == "".join(sorted(set(OLD)))
    assert new.vocabulary.characters[16:] == "".join(sorted(set(NEW) - set(OLD)))
    assert new.metrics["val_nats_per_char"] < 3.5  # it has learnt what it could not even say
    assert new.config.data.vocabulary.include == old.vocabulary.characters


def test_an_untouched_run_scores_the_old_text_as_its_model(settings: Settings, tmp_path: Path) -> None:
    """The whole way: the run's own file, the averaged weights in it, after a step of nothing."""
    train(settings("old", max_steps=30), reporter=Listener())
    config = settings("new", max_steps=1, learning_rate=1e-30, optimizer="sgd", ema_decay=0.9)
    train(config, init_from=str(tmp_path / "run-old"), reporter=Listener())
    was, now = (load_model(tmp_path / run / "last.safetensors") for run in ("run-old", "run-new"))
    assert len(now.vocabulary) > len(was.vocabulary)
    before, after = (bits(build_model(loaded), loaded.vocabulary, OLD) for loaded in (was, now))
    assert after[0] is None and after[1:] == pytest.approx(before[1:], abs=1e-5)


def test_it_resumes_to_the_bit_with_either_configuration(settings: Settings, tmp_path: Path) -> None:
    train(settings("old"), reporter=Listener())
    model = str(tmp_path / "run-old")
    config = settings("new", ema_decay=0.9)
    train(config, init_from=model, reporter=Listener())
    (tmp_path / "run-new").rename(tmp_path / "whole")
    stops = Listener(at_step=lambda report: (_ for _ in ()).throw(KeyboardInterrupt) if report.step == 4 else None)
    assert train(config, init_from=model, reporter=stops).status == "interrupted"
    again = Listener()
    assert train(config, resume=True, reporter=again).steps == 8  # the user's own file, which says nothing of the old characters
    assert not [note for note in again.notes if "kept" in note]
    assert_same_run(tmp_path / "whole", tmp_path / "run-new")
    assert train(load_config(tmp_path / "run-new/config.yaml"), resume=True, reporter=Listener()).status == "already_finished"


def test_a_run_lost_before_its_first_step_keeps_the_weights_it_began_with(settings: Settings, tmp_path: Path) -> None:
    train(settings("old"), reporter=Listener())

    class Gone(Listener):
        def note(self, text: str) -> None:
            super().note(text)
            if (tmp_path / "run-new/config.yaml").exists() and "kept" in text:
                raise RuntimeError("killed")

    config = settings("new", max_steps=1, learning_rate=1e-30, optimizer="sgd")
    with pytest.raises(RuntimeError, match="killed"):
        train(config, init_from=str(tmp_path / "run-old"), reporter=Gone())
    train(config, resume=True, reporter=Listener())
    old, new = (load_model(tmp_path / run / "last.safetensors").weights["head.weight"] for run in ("run-old", "run-new"))
    assert torch.equal(new[:17], old)


@pytest.mark.parametrize(
    "before, after, said",
    [("lines", "none", "it keeps its end of a document, though"), ("none", "lines", "the end of a document is new to it")],
)
def test_documents_or_not(settings: Settings, tmp_path: Path, before: str, after: str, said: str) -> None:
    train(settings("old", data={"documents": before}), reporter=Listener())
    config, listener = settings("new", data={"documents": after}), Listener()
    train(config, init_from=str(tmp_path / "run-old"), reporter=listener)
    assert any(said in note for note in listener.notes)
    assert load_model(tmp_path / "run-new/last.safetensors").vocabulary.symbols == SYMBOLS[:2]
    train(settings("new", data={"documents": after}, max_steps=9), resume=True, reporter=Listener())


def test_a_plan_counts_them_too(settings: Settings, tmp_path: Path) -> None:
    train(settings("old"), reporter=Listener())
    planned = plan(settings("new"), init_from=str(tmp_path / "run-old"))
    assert planned.vocabulary_size == 1 + len(set(OLD + NEW))
    assert "kept 16 characters, added 11" in planned.notes[0]
    assert not (tmp_path / "run-new").exists()


def test_a_second_time_adds_to_the_first(settings: Settings, tmp_path: Path) -> None:
    train(settings("old"), reporter=Listener())
    train(settings("new"), init_from=str(tmp_path / "run-old"), reporter=Listener())
    (tmp_path / "third.txt").write_text("Ελλάδα" * 40, encoding="utf-8")
    listener = Listener()
    train(settings("third", data={"vocabulary": {"include": "☃D"}}), init_from=str(tmp_path / "run-new"), reporter=listener)
    assert any("kept 27 characters, added 6 ('☃' 'Ε' 'ά' 'α' 'δ' 'λ'), 27 of the old do not occur" in note for note in listener.notes)
    characters = load_model(tmp_path / "run-third/last.safetensors").vocabulary.characters
    assert characters.startswith(load_model(tmp_path / "run-new/last.safetensors").vocabulary.characters + "☃")


def test_another_shape_is_refused_by_key_before_anything_is_read(settings: Settings, tmp_path: Path) -> None:
    train(settings("old"), reporter=Listener())
    (tmp_path / "new.txt").unlink()
    with pytest.raises(CheckpointError) as refused:
        train(settings("new", model={"hidden_size": 11, "layer_norm": True}), init_from=str(tmp_path / "run-old"), reporter=Listener())
    assert str(refused.value) == (
        f"{tmp_path}/run-old/best.safetensors: cannot start from it: model.hidden_size is 8 there and 11 here, "
        "model.layer_norm is false there and true here; set the same with "
        "--set model.hidden_size=8 --set model.layer_norm=false, or leave out --init-from"
    )
    assert not (tmp_path / "run-new").exists()


def test_other_characters_are_another_run(settings: Settings, tmp_path: Path) -> None:
    train(settings("old"), reporter=Listener())
    train(settings("new"), init_from=str(tmp_path / "run-old"), reporter=Listener())
    with pytest.raises(UserError, match=r"cannot resume: data\.vocabulary\.include was '.*' and is now 'xyz'; set it back"):
        train(settings("new", data={"vocabulary": {"include": "xyz"}}), resume=True, reporter=Listener())


def corpus_of(settings: Settings, **vocabulary: Any) -> Corpus:
    config = settings("old", data={"vocabulary": vocabulary})
    return load_corpus(config.data, config.seed)


def test_the_characters_that_must_be_there(settings: Settings) -> None:
    corpus = corpus_of(settings, include="zat猫")
    assert corpus.vocabulary.characters == "zat猫" + "".join(sorted(set(OLD) - set("at")))
    assert corpus.absent == "z猫"
    assert corpus.vocabulary.end is None and corpus_of(settings, end=True).vocabulary.end == 1
    assert corpus_of(settings, include="zat猫", max_size=5).vocabulary.characters == "zat猫 "
    assert corpus_of(settings, include="zat猫", max_size=2).vocabulary.characters == "zat猫"
    assert corpus_of(settings, include="zat猫", min_count=999).vocabulary.characters == "zat猫"


@given(characters=st.text().map(lambda text: "".join(dict.fromkeys(text))))
@examples(deadline=None, max_examples=80)
def test_any_characters_survive_the_configuration_file(characters: str) -> None:
    settings = {"data": {"path": "x", "vocabulary": {"include": characters}}, "train": {"max_steps": 1}}
    config = build_config(settings, "test")
    assert build_config(parse_yaml(config.to_yaml()), "its own") == config


def test_a_character_that_stands_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--set .*: data\.vocabulary\.include: 'aba' is not valid; .* 'a' stands there twice"):
        build_config({"data": {"path": "x"}, "train": {"max_steps": 1}}, "test", ["data.vocabulary.include=aba"])


def test_the_count_is_of_the_models_characters(settings: Settings, tmp_path: Path) -> None:
    loaded = model_of(Vocabulary(SYMBOLS[:1], "q"), tmp_path / "m.safetensors")
    config = prepare(settings("old", model={"embedding_size": 64}), loaded)
    said = report(loaded, load_corpus(config.data, config.seed))
    examples_ = "'\\n' ' ' ',' '.' 'a' 'c' 'd' 'e' …"
    assert said == f"{loaded.path}: kept 1 character, added 16 ({examples_}), 1 of the old do not occur in the new text"


# Another task


def test_a_language_model_goes_on_as_one_that_fills(settings: Settings, tmp_path: Path) -> None:
    train(settings("old"), reporter=Listener())
    before = load_model(tmp_path / "run-old/best.safetensors")
    plain = settings("new", max_steps=1, learning_rate=1e-9)
    config = build_config(plain.model_dump(mode="json", exclude={"train": {"tbptt_window"}}) | {"task": "fill"}, "test")
    listener = Listener()
    train(config, init_from=str(tmp_path / "run-old"), reporter=listener)
    assert any(note.endswith("its head for task lm is left behind, and a fresh one begins") for note in listener.notes)
    after = load_model(tmp_path / "run-new/last.safetensors")
    assert after.vocabulary.characters.startswith(before.vocabulary.characters) and after.vocabulary.blank == 1
    rows, old_rows = after.weights["embedding.weight"], before.weights["embedding.weight"]
    kept = len(before.vocabulary.characters)
    torch.testing.assert_close(rows[2 : 2 + kept], old_rows[1:])
    torch.testing.assert_close(rows[:2], old_rows[:1].expand(2, -1))  # a blank begins as something unknown
    for name, weight in before.weights.items():
        if name.startswith("recurrent."):
            torch.testing.assert_close(after.weights[name], weight)
    assert not torch.allclose(after.weights["head.weight"][2 : 2 + kept], before.weights["head.weight"][1:], atol=1e-3)


@pytest.mark.parametrize("same", [True, False])
def test_a_head_is_taken_only_where_it_answers_with_the_same_labels(tmp_path: Path, same: bool) -> None:
    sections = {"data": {"path": "x"}, "model": {"hidden_size": 8, "pooling": "attention"}, "train": {"max_steps": 1}}
    config = build_config({"task": "classify", **sections}, "test")
    known = Vocabulary(SYMBOLS[:2], "ab")
    model = CharRNN(config.model, len(known), 3)
    save_model(tmp_path / "m.safetensors", model, config, known, 1, {}, ("x", "y", "z"))
    loaded = load_model(tmp_path / "m.safetensors")
    labels = ("x", "y", "z") if same else ("p", "q", "r")
    assert keeps_head(loaded, config, labels) == same
    weights = widen(loaded, Vocabulary(SYMBOLS[:2], "abcd"), head=same)
    assert weights["embedding.weight"].shape == (6, 64)
    names = set(dict(model.named_parameters()))
    taken = {name for name in names if name.startswith(("embedding.", "recurrent."))}
    assert set(weights) == (names if same else taken) and taken < names
    if same:
        assert torch.equal(weights["head.weight"], model.head.weight)


def test_what_answers_must_be_alike_only_where_it_is_taken(tmp_path: Path) -> None:
    sections = {"data": {"path": "x"}, "model": {"hidden_size": 8}, "train": {"max_steps": 1}}
    known = Vocabulary(SYMBOLS[:2], "ab")
    config = build_config({"task": "classify", **sections}, "test")
    save_model(tmp_path / "m.safetensors", CharRNN(config.model, len(known), 2), config, known, 1, {}, ("x", "y"))
    loaded = load_model(tmp_path / "m.safetensors")
    prepare(build_config({"task": "tag", **sections, "model": {"hidden_size": 8, "crf": True}}, "test"), loaded)
    with pytest.raises(CheckpointError, match=r"model\.pooling is max there and mean here; set the same with --set model\.pooling=max"):
        prepare(build_config({"task": "classify", **sections, "model": {"hidden_size": 8, "pooling": "mean"}}, "test"), loaded)


def test_a_model_that_fills_goes_on_as_one_that_classifies(settings: Settings, tmp_path: Path) -> None:
    """What it learned of characters, of pairs of them and of how they follow one another is there to the bit."""
    (tmp_path / "new.tsv").write_text("label\ttext\n" + "good\tthe cat sat\nbad\tdie Katze\n" * 20, encoding="utf-8")
    shape = {"embedding_size": 6, "hidden_size": 8, "bidirectional": True, "bigrams": {"max_size": 50, "size": 3}}

    def config(task: str, run: str, **data: Any) -> Config:
        plain = settings("old", max_steps=1).model_dump(mode="json", exclude={"train": {"tbptt_window"}, "data": {"path"}})
        sections = {"task": task, "run": str(tmp_path / run), "model": shape, "data": plain["data"] | data}
        return build_config(plain | sections, "test")

    train(config("fill", "filled", path=str(tmp_path / "old.txt"), documents="lines"), reporter=Listener())
    before = load_model(tmp_path / "filled/last.safetensors")
    wanted = prepare(config("classify", "told", path=str(tmp_path / "new.tsv")), before)
    task = load_task(wanted)
    assert task.vocabulary.symbols == before.vocabulary.symbols == SYMBOLS
    assert task.vocabulary.characters.startswith(before.vocabulary.characters)
    trainer = Trainer(task, RunDirectory(tmp_path / "told"), Listener(), torch.device("cpu"))
    trainer.begin_with(before)
    after = {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}
    kept = [name for name in before.weights if name.startswith(("bigrams.", "recurrent."))]
    assert len(kept) == 2 + 8
    for name in kept:
        assert torch.equal(after[name], before.weights[name]), name
    rows = before.weights["embedding.weight"]
    assert torch.equal(after["embedding.weight"][: len(rows)], rows)
    assert "begin afresh" not in report(before, task.corpus)


def test_pairs_that_begin_afresh_are_told_of(settings: Settings, tmp_path: Path) -> None:
    """A stream has no end of a document, and labelled texts have: then every id is another."""
    shape = {"embedding_size": 6, "hidden_size": 8, "bigrams": {"max_size": 50, "size": 3}}
    config = build_config({"task": "fill", "data": {"path": "x"}, "model": shape, "train": {"max_steps": 1}}, "test")
    known = Vocabulary(("unknown", "blank"), "ab")
    save_model(tmp_path / "m.safetensors", CharRNN(config.model, len(known)), config, known, 1, {})
    loaded = load_model(tmp_path / "m.safetensors")
    (tmp_path / "new.tsv").write_text("label\ttext\n" + "good\tab\nbad\tba\n" * 20, encoding="utf-8")
    sections = {"data": {"path": str(tmp_path / "new.tsv")}, "model": shape, "train": {"max_steps": 1}}
    task = load_task(prepare(build_config({"task": "classify"} | sections, "test"), loaded))
    assert not any(name.startswith("bigrams.") for name in widen(loaded, task.vocabulary, head=False))
    assert "its pairs of characters begin afresh" in report(loaded, task.corpus, head=False)


def test_a_model_that_reads_from_both_sides_is_no_beginning_of_a_language_model(tmp_path: Path) -> None:
    """What would be set alike is what a language model cannot be, so that is no remedy."""
    shape = {"embedding_size": 6, "hidden_size": 8}
    sections = {"data": {"path": "x"}, "train": {"max_steps": 1}}
    config = build_config({"task": "fill", "model": shape | {"bidirectional": True}, **sections}, "test")
    known = Vocabulary(SYMBOLS, "ab")
    save_model(tmp_path / "m.safetensors", CharRNN(config.model, len(known)), config, known, 1, {})
    with pytest.raises(CheckpointError) as caught:
        prepare(build_config({"model": shape, **sections}, "test"), load_model(tmp_path / "m.safetensors"))
    assert str(caught.value) == (
        f"{tmp_path / 'm.safetensors'}: cannot start from it: model.bidirectional is true there and false here; it cannot be the same here "
        "(model.bidirectional: a language model that reads from both sides has read its own answer), so begin with another model, "
        "or leave out --init-from"
    )


# A transcriber

SPEECH: dict[str, Any] = {
    "task": "transcribe",
    "data": {"path": "x", "audio": {"num_mels": 3}},
    "model": {"embedding_size": 4, "hidden_size": 5, "pyramid": {"levels": 1}, "decoder": {"hidden_size": 6, "attention_size": 4}},
    "train": {"max_steps": 1},
}


def test_a_transcriber_takes_new_characters_and_hears_what_it_heard() -> None:
    """The decoder's `unknown` shares its odds with the new ones; CTC, whose blank it is, gives them the end's, which it never hears."""
    old, new = Vocabulary(SYMBOLS[:2], "ab"), Vocabulary(SYMBOLS[:2], "abc")
    config = build_config(SPEECH, "test")
    torch.manual_seed(4)
    model = build_architecture(config, len(old))
    assert isinstance(model, Transcriber) and model.ctc is not None
    nn.init.normal_(model.speller.head.bias)
    nn.init.normal_(model.ctc.bias)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    loaded = Loaded(weights, config, old, 1, {}, Path("x"))
    wider = build_model(Loaded(widen(loaded, new), config, new, 0, {}, Path("x")))
    assert isinstance(wider, Transcriber)
    frames = torch.randn(9, 2, 3)
    before, after = model.eval().encode(frames, None), wider.encode(frames, None)
    previous = torch.tensor([[1, 1], [2, 3], [3, 2]])
    odds, wide = (m(e, previous).log_softmax(-1) for m, e in ((model, before), (wider, after)))  # (L, B, V), (L, B, V + 1)
    torch.testing.assert_close(wide[..., 1:4], odds[..., 1:])
    torch.testing.assert_close(torch.logaddexp(wide[..., 0], wide[..., 4]), odds[..., 0])
    heard, wider_heard = model.ctc_logits(before), wider.ctc_logits(after)
    assert heard is not None and wider_heard is not None
    torch.testing.assert_close(wider_heard[..., :4], heard)
    torch.testing.assert_close(wider_heard[..., 4], heard[..., 1])


@pytest.mark.parametrize(
    "change, line",
    [
        (
            {"model": {**SPEECH["model"], "pyramid": {"levels": 2}}},
            "model.pyramid.levels is 1 there and 2 here; set the same with --set model.pyramid.levels=1",
        ),
        ({"data": {"path": "x", "audio": {"num_mels": 3, "top_db": 40}}}, "data.audio.top_db is null there and 40.0 here"),
        ({"task": "lm", "model": {}, "data": {"path": "x"}}, "a model of task transcribe, which is made otherwise than one of task lm"),
    ],
)
def test_a_transcriber_does_not_begin_what_is_made_otherwise(change: dict[str, Any], line: str) -> None:
    config = build_config(SPEECH, "test")
    loaded = Loaded({}, config, Vocabulary(SYMBOLS[:2], "ab"), 1, {}, Path("model.safetensors"))
    with pytest.raises(CheckpointError) as refused:
        prepare(build_config({**SPEECH, **change}, "test"), loaded)
    assert str(refused.value).startswith("model.safetensors: cannot start from it: ") and line in str(refused.value)
