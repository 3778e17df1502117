"""Manifests: which recording says what, by line, and that one that cannot be used comes in its place with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from charrnn.config import AudioConfig, DataConfig
from charrnn.data.audio import utterance
from charrnn.data.files import sources
from charrnn.data.utterances import Utterance, manifest
from charrnn.errors import DataError

ROWS = [("a.wav", "one two"), ("sub/b.flac", 'three, "four"'), ("c.npy", "五")]
TSV = "audio\ttranscript\n" + "".join(f"{audio}\t{said}\n" for audio, said in ROWS)
CSV = "transcript,speaker,audio\n" + "".join('"{}",x,{}\n'.format(said.replace('"', '""'), audio) for audio, said in ROWS)
JSONL = "".join(json.dumps({"audio": audio, "seconds": 1, "transcript": said}) + "\n" for audio, said in ROWS)
SETTINGS = AudioConfig(sample_rate=8000, window_length=200, hop_length=80, num_mels=7)


def config(**data: Any) -> DataConfig:
    return DataConfig.model_validate({"path": "any"} | data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the recordings of ROWS."""
    (tmp_path / "sub").mkdir()
    random = np.random.default_rng(1)
    soundfile.write(tmp_path / "a.wav", 0.1 * random.standard_normal(4000), 8000)
    soundfile.write(tmp_path / "sub/b.flac", 0.1 * random.standard_normal((22_050, 2)), 44_100)
    np.save(tmp_path / "c.npy", random.standard_normal((30, 7)))
    return tmp_path


def rows(folder: Path, text: str | bytes, name: str = "m.tsv", **data: Any) -> list[Utterance | DataError]:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(manifest(config(**data), sources([path]), []))


def told(found: Utterance | DataError) -> str:
    assert isinstance(found, DataError) and "\n" not in str(found)
    return str(found)


@pytest.mark.parametrize(
    "name, text", [("m.tsv", TSV), ("m.csv", CSV), ("m.jsonl", JSONL), ("m.tsv", "\ufeff" + TSV.replace("\n", "\r\n"))]
)
def test_rows_become_utterances_beside_their_manifest(
    folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    first = 1 if name.endswith("jsonl") else 2
    expected = [Utterance(folder / audio, said, str(folder / name), line) for line, (audio, said) in enumerate(ROWS, start=first)]
    found = rows(folder, text, name)
    assert found == expected
    assert expected[0].place() == f"{folder / name}: line {first}"


def test_a_transcript_that_nobody_can_have_said_is_refused(folder: Path) -> None:
    """Each character is a step of the decoder: a million of them would be a step of minutes."""
    longest, longer = rows(folder, f"audio\ttranscript\na.wav\t{'x' * 5000}\na.wav\t{'x' * 5001}\n")
    assert isinstance(longest, Utterance) and len(longest.transcript) == 5000
    fact = "5,001 characters of text for a recording; expected at most 5,000"
    assert told(longer) == f"{folder / 'm.tsv'}: record 2 (line 3): {fact}, so mend the row or cut the file it names"


def test_columns_format_and_script_are_those_of_the_configuration(folder: Path) -> None:
    text = f"said\tfile\n  漢語 \t {folder / 'a.wav'}\n"
    notes: list[str] = []
    path = folder / "m.data"
    path.write_text(text, encoding="utf-8")
    settings = config(format="tsv", field="said", script="simplified", audio={"field": "file"})
    assert list(manifest(settings, sources([path]), notes)) == [Utterance(folder / "a.wav", "汉语", str(path), 2)]
    assert any(note.startswith("converted to simplified characters") for note in notes)


def test_a_row_that_cannot_be_used_is_named_in_its_place(folder: Path) -> None:
    text = "audio\ttranscript\na.wav\tgood\nnone.wav\tgone\na.wav\t \n \tno path\nsub\ta folder\na.wav\tx\ty\nc.npy\tgood\n"
    path = folder / "m.tsv"
    found = rows(folder, text)
    assert [isinstance(row, Utterance) for row in found] == [True, False, False, False, False, False, True]
    assert [told(row) for row in found[1:6]] == [
        f"{path}: record 2 (line 3): 'none.wav': no such file; expected a recording at {folder / 'none.wav'}, "
        "so mend the path or take the row out",
        f"{path}: record 3 (line 4): field 'transcript' is empty; expected text, so fill it or take the row out",
        f"{path}: record 4 (line 5): field 'audio' is empty; expected a recording's path, so fill it or take the row out",
        f"{path}: record 5 (line 6): 'sub': is a directory; expected a recording at {folder / 'sub'}, so mend the path or take the row out",
        f"{path}: line 7: 3 fields, and the header has 2; mend the row",
    ]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("m.tsv", "audio\ttext\na.wav\tx\n", "line 1: no column 'transcript', which data.field names; its columns are audio, text"),
        ("m.tsv", "adio\ttranscript\na.wav\tx\n", "record 1 (line 2): no field 'audio', which data.audio.field names; "
         "its fields are adio, transcript; did you mean 'adio'?"),
        ("m.tsv", "wav\ttranscript\na.wav\tx\n", "record 1 (line 2): no field 'audio', which data.audio.field names; "
         "its fields are wav, transcript; set data.audio.field to one of them"),
        ("m.jsonl", '{"audio": ["a.wav"], "transcript": {"x": 1}}\n', "record 1 (line 1): field 'transcript' holds {'x': 1}; "
         "expected text or a list of lines"),
        ("m.jsonl", '{"transcript": "x"}\n', "record 1 (line 1): no field 'audio', which data.audio.field names; "
         "its fields are transcript; set data.audio.field to one of them"),
        ("m.jsonl", "{\n", "line 1, column 2: not valid JSON: Expecting property name enclosed in double quotes; "
         "expected one object a line"),
        ("m.txt", "a.wav x\n", "not named .tsv, .csv or .jsonl; expected a manifest with columns audio and transcript, "
         "so set data.format to tsv, csv or jsonl"),
    ],
)  # fmt: skip
def test_a_manifest_that_cannot_be_used_is_named(folder: Path, name: str, text: str, message: str) -> None:
    assert told(rows(folder, text, name)[0]) == f"{folder / name}: {message}"


def test_a_manifest_of_another_format_is_refused(folder: Path) -> None:
    message = "data.format is lines; expected a manifest with columns audio and transcript, so set data.format to tsv, csv or jsonl"
    assert told(rows(folder, TSV, format="lines")[0]) == f"{folder / 'm.tsv'}: {message}"


def test_the_next_manifest_is_read_where_one_cannot_be(folder: Path) -> None:
    (folder / "1.tsv").write_text("audio\ttext\na.wav\tx\n")
    (folder / "2.jsonl").write_text(JSONL)
    found = list(manifest(config(), sources([folder / "1.tsv", folder / "2.jsonl"]), []))
    assert [type(row) for row in found] == [DataError, Utterance, Utterance, Utterance]


def test_a_name_that_is_not_utf8_is_found_and_such_a_transcript_refused(folder: Path) -> None:
    odd = b"\xe9t\xe9.npy"
    (folder / "c.npy").rename(folder / odd.decode("utf-8", "surrogateescape"))
    found, half = rows(folder, b"audio\ttranscript\n" + odd + b"\tsummer\na.wav\t\xed\xa0\xbd\n", encoding="utf-8")
    message = "bytes ED A0 BD: no whole character; expected text without CESU-8 surrogates or damage, so mend it there"
    assert told(half) == f"{folder / 'm.tsv'}: record 2 (line 3): {message}"
    assert isinstance(found, Utterance) and utterance(found.audio, SETTINGS).shape == (30, 7)
