"""Whatever stands in a configuration, there is a Config or one line that names the place, the fact and the remedy."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from charrnn.config import ALIASES, Config, DataConfig, build_config, keys_of, load_config
from charrnn.errors import ConfigError
from charrnn.plain_yaml import parse_yaml

LEAST = "data: {path: a.txt}\ntrain: {max_steps: 9}\n"


def load(folder: Path, text: str | bytes, *overrides: str) -> Config:
    path = folder / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(path, overrides)


def complaint(folder: Path, text: str | bytes, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{folder}/")


def build(**sections: Any) -> Config:
    return build_config({"data": {"path": "a.txt"}, "train": {"max_steps": 9}} | sections, "run.yaml")


# What is accepted


@pytest.mark.parametrize(
    "text", ["1e-3", "017", "0o17", "0b1", "1:30", "yes", "null", "2024-01-01", "12", ".5", "- a", "a: b", "é漢", "#", "'", " a "]
)
def test_written_and_read_again(text: str) -> None:
    """Text stays text, for our reader of YAML and for others."""
    config = build(run=text, data={"path": [text, "b"]})
    assert build_config(parse_yaml(config.to_yaml()), "its own") == config
    assert build_config(yaml.safe_load(config.to_yaml()), "its own") == config


def test_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, LEAST)
    assert config == build()
    assert (config.task, config.seed, config.device, config.model.cell, config.train.batch_size) == ("lm", 1, "auto", "lstm", 32)
    assert (config.train.max_steps, config.train.max_minutes) == (9, None)


TASKS: list[tuple[str, dict[str, Any], str]] = [
    # a task, sections, and what is said of them
    ("fill", {"train": {"tbptt_window": 64}}, "train.tbptt_window: 64 is of task lm, and task is fill; leave it out, or set task: lm"),
    ("fill", {"train": {"keep_text": True}}, "train.keep_text: true is of task lm, and task is fill"),
    ("fill", {"model": {"pooling": "max"}}, "model.pooling: 'max' is of task classify, and task is fill"),
    (
        "tag",
        {"model": {"tied_embeddings": True, "embedding_size": 256}},
        "model.tied_embeddings: true is of task lm and fill, and",
    ),
    ("classify", {"model": {"crf": True}}, "model.crf: true is of task tag, and task is classify"),
    (
        "classify",
        {"data": {"format": "lines"}},
        "data.format: task classify reads text and label from named columns, and",
    ),
    ("classify", {"data": {"documents": "lines"}}, "data.format: task classify reads text and label from named columns"),
    (
        "transcribe",
        {"model": {"residual": True, "hidden_size": 32}},
        "model.residual: true adds nothing: the encoder's one plain layer reads 40 features a frame and hands up 64, and a level of",
    ),
    (
        "caption",
        {"data": {"images": {"features": 9}}, "model": {"cnn": {"dropout": 0.1, "stages": 3}}},
        "model.cnn.stages: 3 is of a network that looks at pixels, and data.images.features: 9 says that others have looked; leave one of",
    ),
    (
        "caption",
        {"data": {"images": {"features": 9}}, "model": {"cnn": {"fragments": {"count": 7}}}},
        "model.cnn.fragments.count: 7 is of a network that looks at pixels, and data.images.features: 9 says that others have looked",
    ),
    ("transcribe", {"data": {"format": "lines"}}, "data.format: task transcribe reads recording and transcript from named columns"),
    ("transcribe", {"data": {"documents": "lines"}}, "data.format: task transcribe reads recording and transcript from named columns"),
    (
        "tag",
        {"data": {"format": "csv"}},
        "data.labels: column reads labels from CoNLL columns, and the text is",
    ),
    ("tag", {"data": {"documents": "lines"}}, "data.labels: column reads labels from CoNLL columns"),
    ("tag", {"data": {"format": "conll", "labels": "punctuation"}}, "data.format: conll is of task tag with labels: column, and labels is"),
    ("tag", {"model": {"crf": True}, "train": {"class_weights": "balanced"}}, "train.class_weights: is of labels that are judged one"),
    ("tag", {"model": {"crf": True}, "train": {"label_smoothing": 0.1}}, "train.label_smoothing: is of labels that are judged one"),
    (
        "fill",
        {"model": {"bidirectional": True, "tied_embeddings": True, "embedding_size": 256}},
        "model: tied_embeddings needs embedding_size (256) equal to twice hidden_size (512); set embedding_size: 512 or",
    ),
]


@pytest.mark.parametrize("task, sections, message", TASKS, ids=[f"{task}-{i}" for i, (task, _, _) in enumerate(TASKS)])
def test_a_task_refuses_what_it_cannot_mean(task: str, sections: dict[str, Any], message: str) -> None:
    data = {"path": "a.txt"} | sections.get("data", {})
    with pytest.raises(ConfigError) as caught:
        build(**(sections | {"task": task, "data": data, "train": {"max_steps": 9} | sections.get("train", {})}))
    assert str(caught.value).startswith(f"run.yaml: {message}")


@pytest.mark.parametrize("override", ["model.bidirectional=true", "model.bigrams.max_size=99", "data.example_length=9"])
def test_what_a_task_cannot_mean_is_blamed_on_the_flag_that_says_it(tmp_path: Path, override: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data: {path: a.txt}\ntrain: {max_steps: 9}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    assert str(caught.value).startswith(f"--set {override!r}: {override.partition('=')[0]}: ")


def test_the_keys_of_a_section_are_those_that_hold_something() -> None:
    keys = keys_of("model.dropout")
    assert {"model.dropout.input", "model.dropout.locked"} < set(keys) and len(keys) == len(set(keys)) == 8
    assert "model.cell" in keys_of("model") and not {"model.dropout", "model.pyramid", "data.path"} & set(keys_of("model"))


def test_layers_of_an_encoder_that_are_equally_wide_may_be_summed() -> None:
    settings = {"task": "transcribe", "data": {"path": "a.tsv"}, "train": {"max_steps": 9}}
    for model in ({"num_layers": 2}, {"hidden_size": 20}):
        assert build_config(settings | {"model": {"residual": True} | model}, "run.yaml").model.residual


def test_a_format_that_a_task_cannot_read_is_blamed_and_not_the_column_that_it_takes() -> None:
    settings = {"task": "transcribe", "data": {"path": "a.tsv"}, "train": {"max_steps": 9}}
    with pytest.raises(ConfigError, match=r"^--set 'data.format=lines': data.format: task transcribe reads recording and transcript from"):
        build_config(settings, "run.yaml", ["data.format=lines"])
    assert build_config(settings, "run.yaml", ["data.format=csv"]).data.field == "transcript"


@pytest.mark.parametrize(
    "task, sections",
    [
        (
            "fill",
            {"data": {"path": "a", "example_length": 9, "blanks": {"share": 0, "line_rate": 0.1}}, "model": {"bidirectional": True}},
        ),
        ("classify", {"data": {"path": "a.tsv", "format": "tsv", "label": "mood"}, "model": {"bidirectional": True, "pooling": "last"}}),
        ("tag", {"data": {"path": "a", "format": "conll"}, "model": {"crf": True, "residual": True}}),
        ("tag", {"data": {"path": "a", "labels": "segmentation", "marks": ",.", "documents": "lines"}}),
    ],
)
def test_what_a_task_takes_is_written_and_read_again(task: str, sections: dict[str, Any]) -> None:
    config = build(task=task, **sections)
    assert build_config(parse_yaml(config.to_yaml()), "its own") == config
    assert (config.is_labelled, config.is_windowed) == (task != "fill", False)


def test_what_a_task_takes_for_a_key_that_is_left_out() -> None:
    classify, lm = build(task="classify"), build()
    assert (classify.data.label, classify.model.pooling) == ("label", "max")
    assert (lm.data.label, lm.model.pooling) == (None, None)
    assert build(task="classify", model={"pooling": "mean"}, data={"path": "a", "label": "y"}).data.label == "y"


@pytest.mark.parametrize(
    "weights, message",
    [
        ("balance", "'balance' is not valid; expected balanced, or a weight above 0 for each label"),
        ({"good": 0}, "{'good': 0} is not valid; expected balanced, or a weight above 0 for each label"),
    ],
)
def test_class_weights(weights: Any, message: str) -> None:
    assert build(task="classify", train={"max_steps": 9, "class_weights": {"good": 2, "bad": 0.5}}).train.class_weights == {
        "good": 2, "bad": 0.5,
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        build(task="classify", train={"max_steps": 9, "class_weights": weights})
    assert str(caught.value).startswith("run.yaml: train.class_weights: ") and message in str(caught.value)


def test_a_split_with_files_of_its_own_takes_nothing_of_the_others() -> None:
    data = build(data={"path": "a", "val_path": ["b"], "val_fraction": 0.6, "test_fraction": 0.5}).data
    assert data.fractions == {"val": 0.0, "test": 0.5}


def test_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        load(tmp_path, LEAST).seed = 2


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-3", 1e-3),
        ("3E4", 3e4),
        ("+1.5e3", 1500.0),
        (".5e1", 5.0),
        ("1.e2", 100.0),
        ("0.25", 0.25),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("10", 10),
        ("-3", -3),
        ("1_000_000", 1_000_000),
        ("017", 17),
        ("0x1F", 31),
        ("0o17", 15),
        ("1:30", "1:30"),  # 90 in YAML 1.1
        ("1e", "1e"),
        ("e5", "e5"),
        ("1.2.3", "1.2.3"),
        ("._e5", "._e5"),
        ("null", None),
        ("~", None),
        ("yes", True),
        ("[1e3, a]", [1000.0, "a"]),
    ],
)
def test_numbers_are_what_everyone_means(text: str, value: Any) -> None:
    assert parse_yaml(f"key: {text}") == {"key": value}
    assert type(parse_yaml(text)) is type(value)


def test_numbers_reach_their_keys(tmp_path: Path) -> None:
    config = load(
        tmp_path, 'data: {path: a.txt}\ntrain: {learning_rate: 1e-3, max_steps: 3E4, beta2: "0.9", batch_size: 16.0, weight_decay: 1}'
    )
    assert (config.train.learning_rate, config.train.max_steps, config.train.beta2, config.train.batch_size) == (1e-3, 30000, 0.9, 16)


def test_empty_sections_and_anchors(tmp_path: Path) -> None:
    config = load(tmp_path, "base: &b {max_steps: 9}\n".replace("base", "train") + "data: {path: a, vocabulary: }\nmodel:\n  dropout:\n")
    assert config.model == build().model and config.data.vocabulary == build().data.vocabulary
    merged = parse_yaml("one: &one {a: 1, b: 2}\ntwo:\n  <<: *one\n  b: 3")
    assert merged["two"] == {"a": 1, "b": 3}


def test_bom_crlf_and_comments(tmp_path: Path) -> None:
    assert load(tmp_path, b"\xef\xbb\xbf# text\r\ndata: {path: a.txt}\r\n\r\ntrain:\r\n  max_steps: 9 # few\r\n") == build()


@pytest.mark.parametrize("old", ALIASES)
@pytest.mark.parametrize("where", ["{old}: 77", "model: {{{old}: 77}}", "train: {{max_steps: 9, {old}: 77}}", "model:\n{old}: 77"])
def test_old_names(tmp_path: Path, old: str, where: str) -> None:
    section, new = ALIASES[old].split(".")
    text = where.format(old=old)
    config = load(tmp_path, ("" if "train" in text else "train: {max_steps: 9}\n") + "data: {path: a.txt}\n" + text)
    assert getattr(getattr(config, section), new) == 77


def test_a_name_and_its_old_name(tmp_path: Path) -> None:
    message = complaint(tmp_path, LEAST + "model: {hidden_size: 3, rnn_size: 4}")
    assert message == "run.yaml: model: 'rnn_size' is another name of model.hidden_size, which is given too; keep one"
    message = complaint(tmp_path, LEAST + "rnn_size: 3\nlstm_size: 4")
    assert message == "run.yaml: top level: 'lstm_size' is another name of model.hidden_size, which is given too; keep one"
    assert complaint(tmp_path, LEAST + "rnn_size: 3\nmodel: 4") == "run.yaml: model: 4 is not valid; expected a section with keys"
    keep = "'keep_prob' is not used here; set model.dropout.output to 1 - keep_prob"
    assert complaint(tmp_path, LEAST + "keep_prob: 0.5") == f"run.yaml: {keep}"
    assert complaint(tmp_path, LEAST, "model.keep_prob=0.5") == f"--set 'model.keep_prob=0.5': {keep}"


# --set


@pytest.mark.parametrize(
    "override, section, key, value",
    [
        ("model.dropout.output=0.5", "model.dropout", "output", 0.5),
        ("train.max_steps=null", "train", "max_steps", None),
        ("train.learning_rate=1e-4", "train", "learning_rate", 1e-4),
        ("train.max-steps = 7", "train", "max_steps", 7),
        ("data.path=[a.txt, b.txt]", "data", "path", ["a.txt", "b.txt"]),
        ("data.path=*.txt", "data", "path", "*.txt"),
        ("data.path=a=b.txt", "data", "path", "a=b.txt"),
        ("model.dropout.locked=[input, output]", "model.dropout", "locked", ["input", "output"]),
        ("model.tied_embeddings=false", "model", "tied_embeddings", False),
        ("rnn_size=77", "model", "hidden_size", 77),
        ("model.rnn_size=77", "model", "hidden_size", 77),
        ("seq-length=5", "train", "tbptt_window", 5),
        ("model={cell: gru}", "model", "cell", "gru"),
        ("data.template={body}", "data", "template", "{body}"),
        ("data.template={title}: {body}", "data", "template", "{title}: {body}"),
        ('data.template="{title}\\n{body}"', "data", "template", "{title}\n{body}"),
        ("data.template=null", "data", "template", None),
        ("data.pattern=^X:", "data", "pattern", "^X:"),
        ("data.pattern=[0-9]+", "data", "pattern", "[0-9]+"),
        ("data.vocabulary.max_size=99", "data.vocabulary", "max_size", 99),
    ],
)
def test_set(tmp_path: Path, override: str, section: str, key: str, value: Any) -> None:
    found: Any = load(tmp_path, "data: {path: a.txt}\ntrain: {max_steps: 9, max_minutes: 1, rnn_size: 5}\nmodel: {dropout: }", override)
    for name in [*section.split("."), key]:
        found = getattr(found, name)
    assert found == value


def test_set_comes_last_and_the_last_wins(tmp_path: Path) -> None:
    text = LEAST + "rnn_size: 5\nmodel: {dropout: {output: 0.1, input: 0.2}}"
    config = load(tmp_path, text, "model.dropout.output=0.3", "lstm_size=6", "model.hidden_size=7", "seed=3")
    assert (config.model.hidden_size, config.model.dropout.output, config.model.dropout.input, config.seed) == (7, 0.3, 0.2, 3)


@pytest.mark.parametrize("override", ["", "seed", "=3", ".=3", "model..cell=gru", "model.=3"])
def test_set_without_a_key(tmp_path: Path, override: str) -> None:
    assert complaint(tmp_path, LEAST, override) == f"--set {override!r}: expected KEY=VALUE, for example --set train.max_minutes=3"


@pytest.mark.parametrize(
    "override, message",
    [
        ("seed.deep=3", "--set 'seed.deep=3': 'seed' is 1, not a section with keys"),
        ("seed={a", "--set 'seed={a': '{a' is not a value; quote it if it is text"),
        ("train.max_steps=-1", "--set 'train.max_steps=-1': train.max_steps: -1 is not valid; expected a number greater than 0"),
        ("model.cell=ltsm", "--set 'model.cell=ltsm': model.cell: 'ltsm' is not valid; expected"),
        ("model.dropot.output=1", "--set 'model.dropot.output=1': model: unknown key 'dropot'; did you mean 'dropout'?"),
        ("train.hidden_size=1", "--set 'train.hidden_size=1': train: unknown key 'hidden_size'; it belongs in section 'model'"),
        ("data.path=" + "[" * 2000, "is not a value; quote it if it is text"),
    ],
)
def test_set_to_what_is_wrong(tmp_path: Path, override: str, message: str) -> None:
    assert message in complaint(tmp_path, LEAST + "seed: 1", override)


def test_settings_stay_as_they_are() -> None:
    given_: dict[str, Any] = {"data": {"path": "a"}, "train": {"max_steps": 1, "rnn_size": 5}, "model": {"dropout": {"input": 0.1}}}
    before = copy.deepcopy(given_)
    build_config(given_, "here", ["model.dropout.input=0.5", "data.path=b", "train.max_steps=5"])
    assert given_ == before


# Mistakes, each by its whole text


@pytest.mark.parametrize(
    "text, message",
    [
        ("modle: {}", "unknown key 'modle'; did you mean 'model'?"),
        ("model: {hiden_size: 3}", "model: unknown key 'hiden_size'; did you mean 'hidden_size'?"),
        ("model: {Hidden_Size: 3}", "model: unknown key 'Hidden_Size'; did you mean 'hidden_size'?"),
        ("model: {dropout: {outptu: 0.1}}", "model.dropout: unknown key 'outptu'; did you mean 'output'?"),
        ("data: {path: a, vocabulary: {maxsize: 3}}", "data.vocabulary: unknown key 'maxsize'; did you mean 'max_size'?"),
        ("model: {zzz: 3}", "model: unknown key 'zzz'; known are cell, embedding_size, "),
        ("hidden_size: 3", "unknown key 'hidden_size'; it belongs in section 'model'"),
        ("model: {output: 0.1}", "model: unknown key 'output'; it belongs in section 'model.dropout'"),
        ("model: {seed: 3}", "model: unknown key 'seed'; it belongs at the top level"),
        ("model: {model: {cell: gru}}", "model: unknown key 'model'; it belongs at the top level"),
        ("model: {1: 3}", "model: key 1 is not text; quote it, or take it out"),
        ("on: 3", "key True is not text; quote it, or take it out"),
        ("model.cell: gru", "unknown key 'model.cell'; "),
        ("model: {a: 1, b: 2}", "model: unknown key 'a'; known are"),
    ],
)
def test_unknown_keys(tmp_path: Path, text: str, message: str) -> None:
    least = LEAST if "data" not in text else "train: {max_steps: 9}\n"
    assert complaint(tmp_path, least + text).startswith(f"run.yaml: {message}")


@pytest.mark.parametrize(
    "text, message",
    [
        ("seed: -1", "seed: -1 is not valid; expected a number greater than or equal to 0"),
        ("seed: 99999999999999999999", "seed: 99999999999999999999 is not valid; expected a number less than 9223372036854775808"),
        ("seed: 0x" + "f" * 5000, "seed: a number of 20000 bits is not valid; expected a number less than 9223372036854775808"),
        ("model: {hidden_size: 0x" + "f" * 5000 + "}", "model.hidden_size: a number of 20000 bits is not valid; expected a number less"),
        (
            "train: {max_steps: 1, batch_size: 0x" + "f" * 5000 + "}",
            "train.batch_size: a number of 20000 bits is not valid; expected a num",
        ),
        ("seed: x", "seed: 'x' is not valid; expected an integer"),
        ("device: gpu", "device: 'gpu' is not valid; expected auto, cpu, mps, cuda or cuda:N"),
        ('device: "cuda:٣"', "device: 'cuda:٣' is not valid; expected auto, cpu, mps, cuda or cuda:N"),
        ("run: 2024", "run: 2024 is not valid; expected text; in quotes if it looks like something else"),
        ("run: 2024-01-01", "run: datetime.date(2024, 1, 1) is not valid; expected text; in quotes if it looks like something else"),
        ('run: ""', "run: '' is not valid; expected text that is not empty"),
        ('run: "a\\0"', "run: 'a\\x00' is not valid; expected text that is not empty"),
        ("model: 3", "model: 3 is not valid; expected a section with keys such as cell, embedding_size, hidden_size"),
        ("model: [cell, gru]", "model: ['cell', 'gru'] is not valid; expected a section with keys such as cell, "),
        ("model: {dropout: 0.5}", "model.dropout: 0.5 is not valid; expected a section with keys such as embedding, input, between_layers"),
        ("model: {cell: LSTN}", "model.cell: 'LSTN' is not valid; expected 'rnn_tanh', 'rnn_relu', 'lstm' or 'gru'; did you mean 'lstm'?"),
        ("model: {cell: 3}", "model.cell: 3 is not valid; expected 'rnn_tanh', 'rnn_relu', 'lstm' or 'gru'"),
        ("model: {num_layers: 0}", "model.num_layers: 0 is not valid; expected a number greater than 0"),
        ("model: {num_layers: yes}", "model.num_layers: true is not valid; expected a number"),
        ("model: {hidden_size: 2.5}", "model.hidden_size: 2.5 is not valid; expected an integer, got a number with a fractional part"),
        ("model: {hidden_size: 1e30}", "model.hidden_size: 1e+30 is not valid; expected "),
        ("model: {hidden_size: [3]}", "model.hidden_size: [3] is not valid; expected an integer"),
        ("model: {tied_embeddings: 3}", "model.tied_embeddings: 3 is not valid; expected a boolean"),
        ("model: {dropout: {output: 1}}", "model.dropout.output: 1 is not valid; expected a number less than 1"),
        ("model: {dropout: {locked: maybe}}", "model.dropout.locked: 'maybe' is not valid; expected true, false or a list of input, "),
        ("model: {dropout: {locked: [all]}}", "model.dropout.locked: ['all'] is not valid; expected true, false or a list of input, "),
        (
            "model: {tied_embeddings: true}",
            "model: tied_embeddings needs embedding_size (64) equal to hidden_size (256); "
            "set embedding_size: 256 or tied_embeddings: false",
        ),
        (
            "model: {bidirectional: true}",
            "model.bidirectional: a language model that reads from both sides has read its own answer; "
            "set bidirectional: false (guessing from both sides is the task `fill`)",
        ),
        (
            "data: {path: a, label: mood}",
            "data.label: 'mood' is of task classify, and task is lm; leave it out, or set task: classify",
        ),
        (
            "data: {path: a, labels: punctuation}",
            "data.labels: 'punctuation' is of task tag, and task is lm; leave it out, or set",
        ),
        ("data: {path: a, marks: .!}", "data.marks: '.!' is of task tag, and task is lm; "),
        (
            "data: {path: a, example_length: 9}",
            "data.example_length: 9 is of task fill, classify and tag, and task is lm; ",
        ),
        ("data: {path: a, blanks: {line_rate: 0.5}}", "data.blanks.line_rate: 0.5 is of task fill, and task is lm; "),
        ("data: {path: a, images: {size: 64}}", "data.images.size: 64 is of task caption, and task is lm; leave it out, or set"),
        ("data: {path: a, images: {augment: {crop: 0.7}}}", "data.images.augment.crop: 0.7 is not valid; expected a number less than or"),
        (
            "data: {path: a, images: {features: 9, augment: {flip: true}}}",
            "data.images: augment changes pixels, and features says that others have made features of them; leave one of them out",
        ),
        ("data: {path: a, format: conll}", "data.format: conll is of task tag with labels: column, and task is lm; set another format"),
        ("model: {pooling: mean}", "model.pooling: 'mean' is of task classify, and task is lm; "),
        ("model: {crf: true}", "model.crf: true is of task tag, and task is lm; "),
        ("train: {max_steps: 1, class_weights: balanced}", "train.class_weights: 'balanced' is of task classify and tag, and task is lm; "),
        ("data: {path: a, marks: .!.}", "data.marks: '.!.' is not valid; expected each character once, and '.' stands there twice"),
        ('data: {path: a, marks: ""}', "data.marks: '' is not valid; expected "),
        ("data: {path: a, blanks: {share: 0}}", "data.blanks: share, span_share and line_rate are all 0, so nothing is hidden; set one of"),
        ("data: {path: a, blanks: {span_max: 1}}", "data.blanks.span_max: 1 is not valid; expected a number greater than or equal to 2"),
        ("data: {path: a, val_path: 3}", "data.val_path: 3 is not valid; expected a path or a list of paths; in quotes if it looks"),
        ("data: {path: a, test_path: []}", "data: test_path names no file; name at least one, or leave test_path out"),
        ("data: {path: 3}", "data.path: 3 is not valid; expected a path or a list of paths; in quotes if it looks like something else"),
        ("data: {path: [a, 3]}", "data.path: ['a', 3] is not valid; expected a path or a list of paths; in quotes if"),
        ('data: {path: [a, ""]}', "data.path: ['a', ''] is not valid; expected a path or a list of paths"),
        ('data: {path: " "}', "data.path: ' ' is not valid; expected text that is not empty"),
        ("data: {path: {a: b}}", "data.path: {'a': 'b'} is not valid; expected a path or a list of paths; in quotes if"),
        ("data: {path: []}", "data: path is missing; name the text to learn from (a file, a list, a glob or a directory), or set source: "),
        ("data:", "data: path is missing; "),
        ("data: {path: a, source: python-stdlib}", "data: path 'a' is given together with source: python-stdlib; leave one of them out"),
        ("data: {path: a, val_fraction: 1}", "data.val_fraction: 1 is not valid; expected a number less than 1"),
        (
            "data: {path: a, audio: {max_seconds: 0.05}}",
            "data.audio.max_seconds: 0.05 is not valid; expected a number greater than or equal to 0.1",
        ),
        ("data: {path: a, val_fraction: -0.1}", "data.val_fraction: -0.1 is not valid; expected a number greater than or equal to 0"),
        (
            "data: {path: a, val_fraction: 0.6, test_fraction: 0.4}",
            "data: val_fraction 0.6 and test_fraction 0.4 leave nothing to train on; ",
        ),
        (
            "data: {path: a, documents: line}",
            "data.documents: 'line' is not valid; expected 'none', 'lines', 'blank_lines' or 'files'; did you",
        ),
        ("train: {}", "train: the run has no end; set at least one of max_steps, max_epochs, max_minutes"),
        ("train: {max_steps: true}", "train.max_steps: true is not valid; expected a number"),
        ("train: {max_steps: 1.5}", "train.max_steps: 1.5 is not valid; expected an integer, got a number with a fractional part"),
        ("train: {max_minutes: 1:30}", "train.max_minutes: '1:30' is not valid; expected a number"),
        ("train: {max_minutes: 1e300}", "train.max_minutes: 1e+300 is not valid; expected a number less than or equal to 1000000000"),
        ("train: {max_steps: 9, learning_rate: .nan}", "train.learning_rate: nan is not valid; expected a finite number"),
        ("train: {max_steps: 9, learning_rate: nan}", "train.learning_rate: 'nan' is not valid; expected a finite number"),
        ("train: {max_steps: 9, max_grad_norm: .inf}", "train.max_grad_norm: inf is not valid; expected a finite number"),
        ("train: {max_steps: 9, learning_rate: fast}", "train.learning_rate: 'fast' is not valid; expected a number"),
    ],
)
def test_wrong_values(tmp_path: Path, text: str, message: str) -> None:
    least = "".join(line for line in LEAST.splitlines(keepends=True) if line.split(":")[0] != text.split(":")[0])
    assert complaint(tmp_path, least + text).startswith(f"run.yaml: {message}")


def test_further_mistakes_are_counted(tmp_path: Path) -> None:
    text = LEAST + "seed: -1\nmodel: {cell: 3, dropout: {locked: 7}}"
    assert complaint(tmp_path, text) == "run.yaml: seed: -1 is not valid; expected a number greater than or equal to 0 (and 2 more)"


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    assert len(complaint(tmp_path, LEAST + f"model: {{cell: {'x' * 100000}}}")) < 300
    assert len(complaint(tmp_path, LEAST + f"model: {{{'x' * 1000}: 3}}")) < 400
    bomb = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))
    assert len(complaint(tmp_path, f"a0: &a0 x\n{bomb}\n{LEAST}seed: *a29")) < 600


# Networks of other packages


@pytest.mark.parametrize(
    "cnn, message",
    [
        ("backbone: resnet18", "model.cnn.backbone: 'resnet18' is not valid; expected torchvision/NAME or timm/NAME, such as torchvision/"),
        ("backbone: hub/resnet18", "model.cnn.backbone: 'hub/resnet18' is not valid; expected torchvision/NAME or timm/NAME"),
        ("backbone: timm/../x", "model.cnn.backbone: 'timm/../x' is not valid"),
        (
            "backbone: timm/resnet18, width: 64",
            "model.cnn: width 64 is of our own network, and backbone is timm/resnet18; leave one of them out",
        ),
        ("frozen: true", "model.cnn: frozen: true is of a backbone, and none is named; name one in backbone, or leave it out"),
        ("weights: none", "model.cnn: weights: none is of a backbone, and none is named"),
        (
            "backbone: timm/resnet18, weights: none, frozen: true",
            "model.cnn: frozen: true keeps weights that nobody has trained, for weights is none; leave one of them out",
        ),
    ],
)
def test_a_backbone_that_cannot_be_meant_is_refused(tmp_path: Path, cnn: str, message: str) -> None:
    assert complaint(tmp_path, f"task: caption\n{LEAST}\nmodel: {{cnn: {{{cnn}}}}}").startswith(f"run.yaml: {message}")


def test_a_backbone_is_of_captions_and_looks_at_pictures(tmp_path: Path) -> None:
    text = f"{LEAST}\nmodel: {{cnn: {{backbone: timm/resnet18}}}}\n"
    assert complaint(tmp_path, text).startswith("run.yaml: model.cnn.backbone: 'timm/resnet18' is of task caption, and task is lm")
    features = "task: caption\ndata: {path: a, images: {features: 8}}\ntrain: {max_steps: 1}\nmodel: {cnn: {backbone: timm/resnet18}}\n"
    expected = "run.yaml: model.cnn.backbone: timm/resnet18 is of a network that looks at pixels, and data.images.features: 8 says"
    assert complaint(tmp_path, features).startswith(expected)
    (tmp_path / "small.yaml").write_text(f"task: caption\n{text}")  # nor has our own network's size a say
    small = load_config(tmp_path / "small.yaml", ["data.images.size=16"]).model.cnn
    assert (small.backbone, small.weights, small.frozen) == ("timm/resnet18", "default", False)


# Files that are no configuration


def laughs(nine: str) -> str:
    """A few lines that stand for billions of values: each names the one before it nine times."""
    named = (f"a{i}: &a{i} {nine.format(', '.join([f'*a{i - 1}'] * 9))}\n" for i in range(1, 20))
    return "a0: &a0 {x: 1}\n" + "".join(named) if "<<" in nine else "a0: &a0 x\n" + "".join(named)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "data: path is missing; name the text"),
        ("# nothing\n", "data: path is missing; name the text"),
        ("- data\n- train\n", "holds a list; expected sections `data:`, `model:`, `train:` with keys"),
        ("text", "holds a str; expected sections"),
        ("3", "holds a int; expected sections"),
        (
            "data:\n\tpath: a",
            "line 2, column 1: not valid YAML: while scanning for the next token, found character '\\t' that cannot start ",
        ),
        ("data: {path: a", "line 1, column 15: not valid YAML: while parsing a flow mapping, expected ',' or '}', but got "),
        ("data: a: b", "line 1, column 8: not valid YAML: mapping values are not allowed here; check indentation and quotes there"),
        ("data: {path: *.txt}", "line 1, column 15: not valid YAML: while scanning an alias, "),
        ("data: 'a", "line 1, column 9: not valid YAML: while scanning a quoted scalar, "),
        ("--- a\n--- b", "line 2, column 1: not valid YAML: expected a single document in the stream, but found another document"),
        ("seed: 1\nseed: 2\n", "line 2, column 1: key 'seed' stands twice in one section; keep one of them"),
        ("model:\n  dropout: {input: 0.1, input: 0.2}", "line 2, column 25: key 'input' stands twice in one section; keep one of them"),
        ("? [a]\n: b", "line 1, column 3: found unhashable key"),
        ("run: 2024-13-45", "line 1, column 6: '2024-13-45' is no timestamp; quote it if it is text"),
        ("seed: " + "9" * 5000, "line 1, column 7: '99"),
        ("seed: !!int ''", "line 1, column 7: '' is no int; quote it if it is text"),
        ("seed: !!bool x", "line 1, column 7: 'x' is no bool; quote it if it is text"),
        ("seed: !!timestamp x", "line 1, column 7: 'x' is no timestamp; quote it if it is text"),
        ("run: !!python/object/apply:os.system [ls]", "line 1, column 6: could not determine a constructor for the tag"),
        ("[" * 2000, "not valid YAML: nested too deeply; expected sections with keys"),
        ("a: &a [*a]", "line 1, column 4: a reference names what it is a part of; write it out"),
        ("x" * 2_000_001, "2,000,001 characters of YAML; expected at most 2,000,000"),
        (laughs("[{}]"), "line 7, column 5: its references stand for 597,871 values; expected at most 100,000"),
        (laughs("{{<<: [{}]}}"), "line 6, column 14: its references stand for "),
        ("run: a\0b", "not valid YAML: unacceptable character #x0000: special characters are not allowed"),
        (b"run: caf\xe9", "not UTF-8 text at byte 8; save the config as UTF-8"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert complaint(tmp_path, text).startswith(f"run.yaml: {message}")


def test_tabs_have_their_remedy(tmp_path: Path) -> None:
    assert complaint(tmp_path, "data:\n\tpath: a").endswith("; indent with spaces")


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    (tmp_path / "shakespeare.yaml").write_text(LEAST)
    for path, why in {
        "shakespear.yaml": "no such config file; `ls configs` shows those that ship; did you mean 'shakespeare.yaml'?",
        "none/such": "no such config file; `ls configs` shows those that ship",
        "": "is a directory; expected a YAML file",
        "shakespeare.yaml/x": "cannot be read: Not a directory",
    }.items():
        with pytest.raises(ConfigError) as caught:
            load_config(tmp_path / path)
        assert str(caught.value) == f"{tmp_path / path}: {why}"


# Any mapping at all

KEYS = sorted(
    {
        key
        for text in ("task run seed device data model train", "path source vocabulary dropout max_size locked cell")
        for key in text.split()
    }
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(2**63), 2**64])
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["lm", "gru", "a.txt", "1e-3", "nan", "\ud800", "a\nb"])
    | st.dates()
    | st.binary(max_size=2)
)
NAMES = st.sampled_from([*KEYS, *ALIASES, "keep_prob", "hidden_size", "max_steps"]) | st.text(max_size=3)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES | st.integers() | st.booleans(), inner, max_size=3)
)


def config_or_one_line(settings_: dict[Any, Any], overrides: list[str]) -> None:
    try:
        config = build_config(settings_, "here", overrides)
    except ConfigError as error:
        assert str(error).startswith(("here: ", "--set "))
        assert len(str(error).splitlines()) == 1
        str(error).encode("utf-8", "backslashreplace")
    else:
        assert build_config(parse_yaml(config.to_yaml()), "its own") == config


@given(settings_=st.dictionaries(NAMES | st.integers(), VALUES, max_size=4), overrides=st.lists(st.text(max_size=9), max_size=1))
@settings(deadline=None, max_examples=150)
def test_any_mapping_is_a_config_or_one_line(settings_: dict[Any, Any], overrides: list[str]) -> None:
    config_or_one_line(settings_, overrides)


PATHS = st.sampled_from(
    ["seed", "run", "device", "model", "data.path", "data.val_fraction", "model.hidden_size", "model.dropout", "model.dropout.locked"]
    + ["train.max_steps", "train.learning_rate", "train.max_epochs", "data.vocabulary.max_size", "model.rnn_size", "train"]
)


@given(path=PATHS, value=VALUES)
@settings(deadline=None, max_examples=150)
def test_any_value_is_taken_or_refused_in_one_line(path: str, value: Any) -> None:
    settings_: dict[str, Any] = {"data": {"path": "a"}, "train": {"max_steps": 1}}
    here = settings_
    *sections, leaf = path.split(".")
    for section in sections:
        here = here.setdefault(section, {})
    here[leaf] = value
    config_or_one_line(settings_, [])


@given(path=PATHS, value=st.text(st.sampled_from("0123e-+.:_ []{}&*!|>'\"%@#,?\t\nab~"), max_size=8))
@settings(deadline=None, max_examples=150)
def test_any_override_is_taken_or_refused_in_one_line(path: str, value: str) -> None:
    config_or_one_line({"data": {"path": "a"}, "train": {"max_steps": 1}}, [f"{path}={value}"])


@given(text=st.text(st.sampled_from("seed:run 12-[]{}&*!<|>'\"%@#,?\t\n\r\0\ufeff~"), max_size=30))
@settings(deadline=None, max_examples=150)
def test_any_file_is_plain_values_or_one_line(text: str) -> None:
    try:
        parse_yaml(text)
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize("where", ["run", "seed", "model", "data"])
def test_numbers_too_long_to_be_written_out(where: str) -> None:
    huge = 16**5000
    for value in (huge, [huge], {huge: huge}, {"path": huge}, {"path": [huge]}, {"hidden_size": [huge]}):
        config_or_one_line({"data": {"path": "a"}, "train": {"max_steps": 1}, where: value}, [])
    config_or_one_line({huge: 1}, [])


@pytest.mark.parametrize("depth", [50, 500, 100_000])
def test_deep_nesting(depth: int) -> None:
    nested: Any = 1
    for _ in range(depth):
        nested = {"model": nested}
    config_or_one_line(nested, ["model.dropout.input=0.5"])
    config_or_one_line({"data": {"path": nested}}, [])
    around: dict[str, Any] = {}
    around["model"] = around
    config_or_one_line(around, [])
    with pytest.raises(ConfigError):
        parse_yaml("".join("{model: " for _ in range(depth)))


@pytest.mark.parametrize("home, cache", [("/var/me", "/var/me/charrnn"), ("", "~/.cache/charrnn"), ("relative", "~/.cache/charrnn")])
def test_the_cache_is_where_the_system_keeps_caches(monkeypatch: pytest.MonkeyPatch, home: str, cache: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    assert DataConfig(path="x.txt").cache == cache


# How text is read


@pytest.mark.parametrize(
    "data, said",
    [
        ({"format": "jsonl", "documents": "lines"}, "data: documents: lines is of plain text, and format is jsonl; leave one of them out"),
        ({"format": "pattern"}, "data: format: pattern needs pattern, a regular expression for the line that begins a document, such as"),
        ({"format": "csv", "pattern": "^X:"}, "data: pattern '^X:' is given, and format is csv; set format: pattern, or leave pattern out"),
        ({"documents": "lines", "pattern": "^X:"}, "data: pattern '^X:' is given, and documents is lines; set format: pattern"),
        ({"pattern": "("}, "data.pattern: '(' is no regular expression (missing ), unterminated subpattern at position 0); expected one"),
        ({"format": "lrc", "field": "text"}, "data: field 'text' is of jsonl, csv and tsv; set format to one of them, or leave field out"),
        ({"format": "json"}, "data.format: 'json' is not valid; expected 'auto', 'text', 'lines', 'title_body', 'blank_lines', "),
        ({"script": "pinyin"}, "data.script: 'pinyin' is not valid; expected 'simplified' or 'traditional'"),
        ({"filters": {"min_length": 9, "max_length": 8}}, "data.filters: min_length 9 is above max_length 8; no document is both"),
        ({"filters": {"authors": "x"}}, "data.filters: unknown key 'authors'; did you mean 'author'?"),
        ({"filters": {"form": 5}}, "data.filters.form: 5 is not valid; expected 五绝, 七绝, 五律, 七律, lines x characters as 4x7"),
        ({"filters": {"drop_lines_with": ""}}, "data.filters.drop_lines_with: '' is not valid; expected text that is not empty"),
    ],
)
def test_how_text_cannot_be_read(tmp_path: Path, data: dict[str, Any], said: str) -> None:
    text = yaml.safe_dump({"data": {"path": "a.txt"} | data, "train": {"max_steps": 9}})
    assert complaint(tmp_path, text).startswith(f"run.yaml: {said}")


def test_a_library_has_no_format(tmp_path: Path) -> None:
    said = complaint(tmp_path, "data: {source: python-stdlib, format: csv}\ntrain: {max_steps: 9}\n")
    assert said == "run.yaml: data: source: python-stdlib is plain text, and format is csv; leave one of them out"


def test_documents_that_were_none_are_none() -> None:
    """A model that was made before formats were guessed says so, and is read as it was."""
    assert DataConfig(path="a.txt", documents="none").documents == "none"
    assert DataConfig(path="a.txt").documents is None
    assert [DataConfig(path="a.txt", format=kind).separator for kind in ("lines", "blank_lines", "auto")] == ["\n", "\n\n", "\n\n"]
