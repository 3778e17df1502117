"""Model files and states: whole or refused, by text; nothing in them is ever run."""

from __future__ import annotations

import errno
import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from charrnn.atomic import WriteError, write_atomically
from charrnn.checkpoint import build_model, load_model, load_state, save_model, save_state
from charrnn.config import Config, build_config
from charrnn.data.vocabulary import SYMBOLS, Vocabulary
from charrnn.errors import CheckpointError, UserError
from charrnn.model_file import UNSUMMED, find_model, with_checksum
from charrnn.models.char_rnn import CharRNN

VOCABULARY = Vocabulary(SYMBOLS[:1], "\n abc龍")


def config(**model: Any) -> Config:
    sizes = {"embedding_size": 5, "hidden_size": 6, **model}
    return build_config({"data": {"path": "x.txt"}, "model": sizes, "train": {"max_steps": 1}}, "test")


def saved(path: Path, **model: Any) -> CharRNN:
    network = CharRNN(config(**model).model, len(VOCABULARY))
    save_model(path, network, config(**model), VOCABULARY, 7, {"val_nats_per_char": 1.5})
    return network


def rewrite(path: Path, **changes: str | None) -> None:
    """Change the metadata of a model file, which gets the checksum of what it then holds; None takes a key out."""
    weights = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, "pt") as file:
        metadata = {**file.metadata(), "checksum": UNSUMMED, **changes}
    payload = safetensors.torch.save(weights, {k: v for k, v in metadata.items() if v is not None})
    path.write_bytes(b"".join(with_checksum(payload) if "checksum" not in changes else [payload]))


@pytest.mark.parametrize(
    "model", [{}, {"num_layers": 2, "layer_norm": True, "cell": "gru"}, {"tied_embeddings": True, "embedding_size": 6}], ids=str
)
def test_round_trip(tmp_path: Path, model: dict[str, Any]) -> None:
    path = tmp_path / "m.safetensors"
    network = saved(path, **model)
    loaded = load_model(str(path))
    assert (loaded.config, loaded.vocabulary, loaded.step, loaded.metrics) == (config(**model), VOCABULARY, 7, {"val_nats_per_char": 1.5})
    assert set(loaded.weights) == dict(network.named_parameters()).keys()
    before = torch.get_rng_state()
    again = build_model(loaded)
    assert torch.equal(before, torch.get_rng_state())
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    ids = torch.randint(0, len(VOCABULARY), (5, 2))
    assert torch.equal(network.eval()(ids, None)[0], again(ids, None)[0])


def test_a_header_may_be_as_long_as_the_first_bytes_of_a_pickle(tmp_path: Path) -> None:
    """Read as bytes, a header length of 0x280 is how a pickle begins, and one of 0x4B50 how a zip does."""
    path = tmp_path / "m.safetensors"
    saved(path)
    rewrite(path, checksum=None)
    payload = path.read_bytes()
    (length,) = struct.unpack("<Q", payload[:8])
    for longer in (((length >> 8) + 1 << 8) + 0x80, 0x4B50):
        header = payload[8 : 8 + length].ljust(longer)
        path.write_bytes(struct.pack("<Q", longer) + header + payload[8 + length :])
        assert load_model(path).step == 7


def test_what_is_not_finite_is_read(tmp_path: Path) -> None:
    network = saved(tmp_path / "m.safetensors")
    with torch.no_grad():
        network.head.bias.fill_(float("nan"))
    save_model(tmp_path / "m.safetensors", network, config(), VOCABULARY, 7, {"val_nats_per_char": float("nan")})
    assert load_model(tmp_path / "m.safetensors").weights["head.bias"].isnan().all()


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    saved(path)
    whole = path.read_bytes()
    for length in [*range(12), *range(20, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"m\.safetensors: ") as error:
            load_model(path)
        assert "\n" not in str(error.value)


def test_a_file_with_more_behind_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    saved(path)
    path.write_bytes(path.read_bytes() + b"\0" * 16)
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(path)


def test_foreign_safetensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="not one that charrnn wrote"):
        load_model(path)
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="not one that charrnn wrote"):
        load_model(path)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("name", ["model.pt", "best.safetensors", "last.state.pt"])
@pytest.mark.parametrize("archive", [False, True], ids=["pickle", "torch"])
def test_a_pickle_is_refused_and_not_run(tmp_path: Path, name: str, archive: bool) -> None:
    path, target = tmp_path / name, tmp_path / "executed"
    if archive:
        torch.save({"model": Bomb(target)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Bomb(target)}))
    with pytest.raises(CheckpointError, match="a pickle file, which could run code"):
        load_model(path)
    with pytest.raises(CheckpointError, match="damaged"):
        load_state(path)
    assert not target.exists()


@pytest.mark.parametrize("claim", [2**63, 2**40, 10**6])
def test_a_header_that_claims_a_huge_size_is_not_believed(tmp_path: Path, claim: int) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", claim) + b"{}" + b" " * 100)
    with pytest.raises(CheckpointError, match=f"its header claims {claim} bytes and the file has 110"):
        load_model(path)


def test_a_tensor_that_claims_a_huge_size_is_not_believed(tmp_path: Path) -> None:
    tensor = {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}
    header = {"__metadata__": {"format": "charrnn", "format_version": "1"}, "w": tensor}
    payload = json.dumps(header).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(payload)) + payload)
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "model", [{"hidden_size": 10**6, "embedding_size": 10**6}, {"num_layers": 1000}, {"hidden_size": 7}, {"cell": "gru"}], ids=str
)
def test_a_config_that_its_weights_do_not_fit_is_refused(tmp_path: Path, model: dict[str, Any]) -> None:
    path = tmp_path / "m.safetensors"
    saved(path)
    rewrite(path, config=config(**model).to_yaml())
    with pytest.raises(CheckpointError, match=r"damaged: (tensor .* the config asks for|its config asks for)"):
        load_model(path)


def labelled(path: Path, labels: tuple[str, ...]) -> None:
    sections = {"task": "classify", "data": {"path": "x.txt"}, "train": {"max_steps": 1}}
    settings = build_config(sections | {"model": {"embedding_size": 5, "hidden_size": 6, "bidirectional": True}}, "test")
    save_model(path, CharRNN(settings.model, len(VOCABULARY), len(labels)), settings, VOCABULARY, 7, {"val_f1_很好": 0.5}, labels)


def test_the_labels_are_in_the_file(tmp_path: Path) -> None:
    path, labels = tmp_path / "m.safetensors", ("bad", "good", "很好")
    labelled(path, labels)
    loaded = load_model(path)
    assert loaded.labels == labels and loaded.metrics == {"val_f1_很好": 0.5}
    logits, _ = build_model(loaded)(torch.zeros(4, 2, dtype=torch.int64), None)
    assert logits.shape == (2, 3)
    rewrite(path, labels='["bad", "good"]')
    with pytest.raises(CheckpointError, match=r"damaged: tensor 'head\.weight' has shape \(3, 12\); the config asks for \(2, 12\)"):
        load_model(path)
    rewrite(path, labels=None)
    with pytest.raises(CheckpointError, match="damaged: it has 0 labels, and its config is one of task classify"):
        load_model(path)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"format_version": "2", "charrnn_version": "9.9"}, "by charrnn '9.9' in format '2', and .* formats up to 1; upgrade charrnn"),
        ({"format_version": "x"}, "in format 'x'"),
        ({"format_version": "9" * 5000}, r"in format '9+\.\.\.9+', and"),
        ({"format_version": "2", "charrnn_version": "\x1b[31mx\nsecond" + "y" * 9999}, r"by charrnn '\\x1b\[31mx\\nsecondy+\.\.\.y+' in"),
        ({"metrics": '{"a": 1' + "0" * 400 + "}"}, "its metadata cannot be read"),
        ({"metrics": '{"a\\nb": 1}'}, r"'a\\nb' is no name of a metric"),
        ({"step": "-5"}, "step -5 is none"),
        ({"step": "9" * 4000}, "step a number of 13288 bits is none"),
        ({"config": None}, "its metadata has no 'config'"),
        ({"config": "data: {path: x}\ntrain: {max_steps: 0}"}, "train.max_steps"),
        ({"config": "[1, 2]"}, "its config: holds a list; expected sections"),
        ({"config": "a: ["}, "damaged: .*not valid YAML"),
        ({"vocabulary": "{"}, "its vocabulary is damaged"),
        ({"labels": '["a"]'}, "it has 1 labels, and its config is one of task lm"),
        ({"labels": "{}"}, "its labels are damaged; expected the distinct names that training wrote"),
        ({"labels": '["a", "a"]'}, "its labels are damaged"),
        ({"labels": "[[1]]"}, "its labels are damaged"),
        ({"labels": "["}, "its metadata cannot be read"),
        ({"step": "many"}, "its metadata cannot be read"),
        ({"metrics": "[]"}, "its metadata cannot be read"),
        ({"vocabulary": Vocabulary(SYMBOLS[:1], "ab").to_json()}, "tensor 'embedding.weight' has shape"),
    ],
)
def test_metadata_that_means_nothing_is_refused(tmp_path: Path, changes: dict[str, str | None], text: str) -> None:
    path = tmp_path / "m.safetensors"
    saved(path)
    rewrite(path, **changes)
    with pytest.raises(CheckpointError, match=text) as error:
        load_model(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors: no such file"):
        load_model(tmp_path / "none.safetensors")


def test_state_round_trip_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "last.state.pt"
    state: dict[str, Any] = {"w": torch.arange(5.0), "step": 3, "nested": {"a": [1, (torch.ones(2), None)]}}
    save_state(path, state)
    loaded = load_state(path)
    assert loaded["step"] == 3 and torch.equal(loaded["w"], state["w"]) and torch.equal(loaded["nested"]["a"][1][0], torch.ones(2))
    whole = path.read_bytes()
    for damaged in [b"", b"nonsense", *(whole[:n] for n in range(1, len(whole), 101))]:
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"last\.state\.pt: damaged.*--init-from"):
            load_state(path)
    torch.save({"something": "else"}, path)
    with pytest.raises(CheckpointError, match="not the state of a charrnn run"):
        load_state(path)
    torch.save({"state_version": 99, "charrnn_version": "9.9"}, path)
    with pytest.raises(CheckpointError, match=r"written by charrnn '9\.9' in format 99"):
        load_state(path)


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, broken, full)
    with pytest.raises(WriteError, match="file: cannot be written: No space left on device; free some space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_write_that_is_interrupted_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="cannot be written: No such file or directory"):
        write_atomically(tmp_path / "none" / "file", b"")


def test_find_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no model is named, and no run under .*runs has one \(best.safetensors or last"):
        find_model(None)
    for i, name in enumerate(["poems", "novels", "empty"]):
        (tmp_path / "runs" / name).mkdir(parents=True)
        if name != "empty":
            saved(tmp_path / "runs" / name / "last.safetensors")
            os.utime(tmp_path / "runs" / name / "last.safetensors", (i, i))
    assert find_model(None) == Path("runs/novels/last.safetensors")
    saved(tmp_path / "runs/poems/best.safetensors")
    assert find_model(None) == find_model("runs/poems") == Path("runs/poems/best.safetensors")
    assert find_model("runs/poems/last.safetensors") == Path("runs/poems/last.safetensors")
    with pytest.raises(UserError, match="runs/empty: the directory holds neither"):
        find_model("runs/empty")
    with pytest.raises(UserError, match=r"runs/poem: no such run or model file; did you mean 'runs/poems'\?"):
        find_model("runs/poem")
    with pytest.raises(UserError, match=r"poems: no such run or model file; did you mean 'runs/poems'\?"):
        find_model("poems")
    Path("runs/poems/samples.txt").touch()
    with pytest.raises(
        UserError, match=r"^runs/poems/sample: no such run or model file; did you mean 'runs/poems(/[a-z]+.safetensors)?'\?"
    ):
        find_model("runs/poems/sample")
    with pytest.raises(UserError, match=r"did you mean 'runs/poems/last.safetensors'\?"):
        find_model("runs/poems/lst.safetensors")
