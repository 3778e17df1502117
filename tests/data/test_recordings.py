"""Recordings of a manifest: features beside transcripts, computed once and kept, and what is said of one that cannot be used."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from charrnn.config import DataConfig
from charrnn.data import recordings
from charrnn.data.audio import utterance
from charrnn.data.recordings import Recordings, load_recordings, load_recordings_file
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import DataError, Faults

MELS = 7
AUDIO = {"sample_rate": 8000, "window_length": 200, "hop_length": 80, "num_mels": MELS}
ROWS = [("a.wav", "one two"), ("b.flac", "three"), ("c.npy", "five"), ("d.npy", "one")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a manifest, and recordings of several kinds."""
    there, random = tmp_path / "said", np.random.default_rng(1)
    there.mkdir()
    soundfile.write(there / "a.wav", 0.1 * random.standard_normal(4000), 8000)
    soundfile.write(there / "b.flac", 0.1 * random.standard_normal((22_050, 2)), 44_100)
    np.save(there / "c.npy", random.standard_normal((30, MELS)))
    np.save(there / "d.npy", random.standard_normal((1, MELS)).astype(np.float16))
    (there / "m.tsv").write_text("audio\ttranscript\n" + "".join(f"{audio}\t{said}\n" for audio, said in ROWS))
    return there


def settings(folder: Path, name: str = "m.tsv", audio: dict[str, Any] | None = None, **data: Any) -> DataConfig:
    defaults = {"path": str(folder / name), "field": "transcript", "val_fraction": 0.25, "cache": str(folder.parent / "cache")}
    return DataConfig.model_validate(defaults | {"audio": AUDIO | (audio or {})} | data)


def entries(folder: Path) -> list[Path]:
    return sorted((folder.parent / "cache").glob("audio-*"))


def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The recordings that are read from now on."""
    read: list[str] = []

    def count(path: Path, config: Any) -> torch.Tensor:
        read.append(path.name)
        return utterance(path, config)

    monkeypatch.setattr(recordings, "utterance", count)
    return read


def held(found: Recordings) -> dict[str, tuple[torch.Tensor, str]]:
    """Of each recording its features and its transcript, by its name."""
    names = {i: at.audio.name for i, at in enumerate(found.utterances)}
    vocabulary = found.corpus.vocabulary
    return {name: (found.features(i), vocabulary.decode(found.transcript(i).tolist())) for i, name in names.items()}


def test_each_has_its_features_and_its_transcript_closed_by_an_end(folder: Path) -> None:
    heard: list[tuple[int, int]] = []
    found = load_recordings(
        settings(folder, test_fraction=0.25, vocabulary={"include": "fiv"}), 1, lambda done, total: heard.append((done, total))
    )
    assert {name: said for name, (_, said) in held(found).items()} == dict(ROWS)
    for name, (features, _) in held(found).items():
        assert torch.equal(features, utterance(folder / name, settings(folder).audio)) and features.dtype == torch.float32
    assert [len(found.split(split)) for split in ("train", "test", "val")] == [2, 1, 1]
    assert sorted(i for split in ("train", "test", "val") for i in found.split(split)) == [0, 1, 2, 3]
    lengths = {"a.wav": 50, "b.flac": 50, "c.npy": 30, "d.npy": 1}
    for split in ("train", "test", "val"):
        assert found.lengths(split).tolist() == [lengths[found.utterances[i].audio.name] for i in found.split(split)]
        ids = np.concatenate([found.transcript(i) for i in found.split(split)])
        assert np.array_equal(ids, found.corpus.split(split)) and ids[-1] == found.corpus.vocabulary.end
    sizes = np.cumsum([at.audio.stat().st_size for at in found.utterances]).tolist()
    assert heard == [(size, sizes[-1]) for size in sizes]


def test_features_are_a_copy_and_what_is_kept_cannot_be_changed(folder: Path) -> None:
    found = load_recordings(settings(folder), 1)
    found.features(0).fill_(7)
    assert not bool((found.features(0) == 7).any())
    with pytest.raises(ValueError, match="read-only"):
        found.frames[0] = 1


def test_the_vocabulary_is_that_of_what_is_trained_on(folder: Path) -> None:
    (folder / "v.tsv").write_text("audio\ttranscript\nc.npy\tmix\n")
    found = load_recordings(settings(folder, val_path=str(folder / "v.tsv")), 1)
    assert found.corpus.vocabulary.symbols == ("unknown", "end") and found.corpus.vocabulary.characters == "".join(
        sorted(set("onetwothreefive "))
    )
    (i,) = found.split("val")
    assert [found.corpus.vocabulary.decode([k]) for k in found.transcript(i).tolist()] == ["", "i", "", ""] and found.corpus.unknown == 2


def test_one_character_is_enough_to_transcribe(folder: Path) -> None:
    (folder / "m.tsv").write_text("audio\ttranscript\nc.npy\tx\nd.npy\txx\n")
    assert load_recordings(settings(folder, val_fraction=0), 1).corpus.vocabulary.characters == "x"


# The cache


def test_what_was_computed_once_is_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_recordings(settings(folder), 1)
    read = computed(monkeypatch)
    again = load_recordings(settings(folder), 1)
    assert read == [] and len(entries(folder)) == 1
    assert np.array_equal(first.frames, again.frames) and first.corpus.contents == again.corpus.contents
    # What is done to the features afterwards is no reason to compute them anew.
    later = {"deltas": 2, "normalization": "global", "augment": {"noise": 0.1}}
    load_recordings(settings(folder, audio=later), 1)
    assert read == [] and len(entries(folder)) == 1


@pytest.mark.parametrize("audio", [{"num_mels": 9}, {"hop_length": 100}, {"window_length": 160}, {"sample_rate": 16_000}], ids=str)
def test_other_features_are_computed_anew(folder: Path, audio: dict[str, int]) -> None:
    (folder / "m.tsv").write_text("audio\ttranscript\na.wav\tone\nb.flac\ttwo\n")
    first, other = load_recordings(settings(folder), 1), load_recordings(settings(folder, audio=audio), 1)
    assert len(entries(folder)) == 2 and first.corpus.contents != other.corpus.contents


def test_a_recording_that_has_changed_is_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_recordings(settings(folder), 1)
    np.save(folder / "c.npy", np.ones((30, MELS)))
    os.utime(folder / "c.npy", ns=(1, 1))
    read = computed(monkeypatch)
    other = load_recordings(settings(folder), 1)
    assert "c.npy" in read and other.corpus.contents != first.corpus.contents
    assert bool((held(other)["c.npy"][0] == 1).all())


def test_a_transcript_that_has_changed_is_another_corpus_of_the_same_features(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_recordings(settings(folder), 1)
    read = computed(monkeypatch)
    (folder / "m.tsv").write_text((folder / "m.tsv").read_text().replace("five", "viva"))
    assert load_recordings(settings(folder), 1).corpus.contents != first.corpus.contents and read == []


def test_where_the_files_lie_decides_nothing(folder: Path, tmp_path: Path) -> None:
    first = load_recordings(settings(folder), 1)
    shutil.copytree(folder, tmp_path / "moved/there")
    other = load_recordings(settings(tmp_path / "moved/there", cache=str(tmp_path / "another")), 1)
    assert first.corpus.contents == other.corpus.contents


def test_frames_are_what_is_learned_from(folder: Path) -> None:
    """The same text of other sounds is another corpus: a run is not resumed with it."""
    first = load_recordings(settings(folder), 1)
    features = np.load(folder / "c.npy")
    features[3, 2] += 1e-3
    np.save(folder / "c.npy", features)
    assert load_recordings(settings(folder, cache=str(folder.parent / "other")), 1).corpus.contents != first.corpus.contents


@pytest.mark.parametrize("damage", ["frames.bin", "edges.json", "both"])
@pytest.mark.parametrize("how", ["cut", "gone", "rubbish"])
def test_a_damaged_entry_is_written_anew(folder: Path, damage: str, how: str) -> None:
    first = load_recordings(settings(folder), 1)
    kept = np.array(first.frames)
    (entry,) = entries(folder)
    for name in ("frames.bin", "edges.json") if damage == "both" else (damage,):
        content = (entry / name).read_bytes()
        (entry / name).unlink()
        if how != "gone":
            (entry / name).write_bytes(content[:-3] if how == "cut" else b"{}")
    again = load_recordings(settings(folder), 1)
    assert np.array_equal(again.frames, kept) and again.corpus.contents == first.corpus.contents
    assert entries(folder) == [entry] and not list((folder.parent / "cache").glob(".*"))


# What cannot be used


def refused(folder: Path, **data: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_recordings(settings(folder, **data), 1)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_used_is_named_by_line_and_leaves_nothing_behind(folder: Path) -> None:
    place = f"{folder / 'm.tsv'}: line 4"
    np.save(folder / "c.npy", np.zeros((3, 9)))
    fact = f"{folder / 'c.npy'}: 9 features a frame; expected 7, which is data.audio.num_mels"
    assert refused(folder) == f"{place}: {fact}, so set that to what the features have"
    (folder / "c.npy").write_bytes(b"no features")
    assert refused(folder).startswith(f"{place}: {folder / 'c.npy'}: not a whole .npy file of numbers (")
    np.save(folder / "c.npy", np.full((3, 7), np.nan))
    assert refused(folder).startswith(f"{place}: {folder / 'c.npy'}: frame 0, feature 0: nan is no number")
    (folder / "c.npy").unlink()
    missing = f"'c.npy': no such file; expected a recording at {folder / 'c.npy'}, so mend the path or take the row out"
    assert refused(folder) == f"{folder / 'm.tsv'}: record 3 (line 4): {missing}"
    assert entries(folder) == [] and not list((folder.parent / "cache").glob(".*"))


def test_all_recordings_that_cannot_be_used_are_named_in_the_order_of_the_manifest(folder: Path) -> None:
    for name in ("a.wav", "c.npy", "d.npy"):
        (folder / name).write_bytes(b"neither sound nor features")
    with pytest.raises(Faults) as caught:
        load_recordings(settings(folder), 1)
    assert [line.split(": ")[:3] for line in caught.value.lines] == [
        [str(folder / "m.tsv"), f"line {at}", str(folder / name)] for at, name in ((2, "a.wav"), (4, "c.npy"), (5, "d.npy"))
    ]
    assert entries(folder) == [] and not list((folder.parent / "cache").glob(".*"))


def test_a_manifest_of_ones_own_is_read_without_what_cannot_be_used(folder: Path) -> None:
    """Each time it is read, for another may mend it without writing to its file; the others are computed once."""
    (folder / "a.wav").write_bytes(b"no sound")
    with open(folder / "m.tsv", "a") as manifest:
        manifest.write("none.wav\tgone\n")
    for _ in range(2):
        found = load_recordings_file(settings(folder), folder / "m.tsv", Vocabulary(("unknown", "end"), " ehinortvwf"))
        assert {name: said for name, (_, said) in held(found).items()} == dict(ROWS[1:])
        place = f"{folder / 'm.tsv'}: "
        (missing, damaged) = map(str, found.corpus.faults)
        assert missing.startswith(f"{place}record 5 (line 6): 'none.wav': no such file") and damaged.startswith(f"{place}line 2: ")
    assert len(entries(folder)) == 1


def test_a_recording_that_is_lost_after_it_was_kept_is_named(folder: Path) -> None:
    load_recordings(settings(folder), 1)
    (folder / "a.wav").write_bytes(b"RIFF, and no more")
    assert refused(folder).startswith(f"{folder / 'm.tsv'}: line 2: {folder / 'a.wav'}: not audio that can be read (")
    (folder / "a.wav").unlink()
    assert refused(folder).startswith(f"{folder / 'm.tsv'}: record 1 (line 2): 'a.wav': no such file")


def test_too_long_a_recording_is_named(folder: Path) -> None:
    """Also where its features are there already, of a time when it might be so long."""
    load_recordings(settings(folder), 1)
    message = refused(folder, audio={**AUDIO, "max_seconds": 0.4})
    assert "0.50 seconds long; expected at most 0.4, which is data.audio.max_seconds" in message


def test_a_cache_that_cannot_be_written(folder: Path) -> None:
    (folder / "file").write_text("")
    message = refused(folder, cache=str(folder / "file/cache"))
    assert (
        message.startswith(f"data.cache {folder / 'file/cache'}: cannot be written: ") and "name another directory in data.cache" in message
    )


def test_nothing_to_train_on_is_refused(folder: Path) -> None:
    (folder / "m.tsv").write_text("audio\ttranscript\n")
    assert refused(folder).endswith("m.tsv: holds no utterance; expected some to learn from")
    (folder / "m.tsv").write_text("audio\ttranscript\nc.npy\tx\n")
    remedy = "add some, or lower data.val_fraction and data.test_fraction"
    assert refused(folder).endswith(f"m.tsv: 1 utterance leaves none to train on; {remedy}")


# A file of the user's own


def test_a_manifest_of_ones_own_is_read_whole_and_in_its_order(folder: Path, tmp_path: Path) -> None:
    vocabulary = Vocabulary(("unknown", "end"), "enot")
    found = load_recordings_file(settings(folder, filters={"min_length": 4}), folder / "m.tsv", vocabulary)
    assert [at.audio.name for at in found.utterances] == [audio for audio, _ in ROWS]
    assert (list(found.split("test")), len(found.split("train")), len(found.split("val"))) == ([0, 1, 2, 3], 0, 0)
    assert found.transcript(3).tolist() == [4, 3, 2, 1] and found.corpus.vocabulary is vocabulary
    (tmp_path / "none.tsv").write_text("audio\ttranscript\n")
    with pytest.raises(DataError) as caught:
        load_recordings_file(settings(folder), tmp_path / "none.tsv", vocabulary)
    assert str(caught.value) == f"{tmp_path / 'none.tsv'}: holds no utterance; expected some to measure on"
