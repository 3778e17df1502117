"""Recordings of any length, piece by piece: what is written of each, how sure that is, how long it took, and what came to no end.

The recordings are those of the sample, and joined from them; the model has learned nothing, but what it writes hangs on what it hears.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch

from charrnn.config import AudioConfig, DecodingConfig, ModelConfig
from charrnn.data.audio import utterance
from charrnn.data.features import finish
from charrnn.data.vocabulary import Vocabulary
from charrnn.decoding import Hypothesis
from charrnn.errors import DataError
from charrnn.models.transcriber import Transcriber
from charrnn.transcribing import Heard, Transcribe, Transcript

TONES = Path(__file__).parents[1] / "data/sample/tones/val"
RATE = 8000
AUDIO = AudioConfig(sample_rate=RATE, num_mels=12, window_length=200, hop_length=80)
VOCABULARY = Vocabulary(("unknown", "end"), " abcdefgh")
END = 1


@pytest.fixture(scope="module")
def model() -> Transcriber:
    """Of some pieces it writes a little, of others on and on."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 8, "attention_size": 6, "location_filters": 2, "location_width": 3}
    config = {"embedding_size": 6, "hidden_size": 8, "bidirectional": True, "pyramid": {"levels": 2}, "decoder": sizes}
    model = Transcriber(ModelConfig.model_validate(config), AUDIO.features, len(VOCABULARY))
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.mul_(3)
        model.speller.attention.energy.weight.mul_(20)
        model.speller.head.weight[:, :8] *= 8  # what it has written
        model.speller.head.weight[:, 8:] *= 60  # what it hears
        model.speller.head.bias[END] += 5
    return model.eval()


def listener(model: Transcriber, vocabulary: Vocabulary = VOCABULARY, audio: dict[str, Any] | None = None, **decoding: Any) -> Transcribe:
    return Transcribe(model, vocabulary, AUDIO.model_copy(update=audio or {}), DecodingConfig.model_validate({"max_length": 12} | decoding))


def samples(count: int = 8) -> npt.NDArray[np.float32]:
    """Recordings of the sample, one behind the other."""
    return np.concatenate([soundfile.read(path, dtype="float32")[0] for path in sorted(TONES.glob("*.flac"))[:count]])


@pytest.fixture
def long(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "long.wav", samples(), RATE, subtype="FLOAT")
    return tmp_path / "long.wav"


SHORT = {"max_seconds": 0.8}


def test_pieces_are_the_whole_recording_and_each_is_written_as_if_it_were_alone(model: Transcriber, long: Path, tmp_path: Path) -> None:
    whole = samples()
    found = listener(model, audio=SHORT).file(long)
    assert found.path == long and found.seconds == len(whole) / RATE and len(found.heard) > found.seconds / 0.8
    assert found.heard[0].start == 0 and found.heard[-1].stop == found.seconds
    assert [heard.stop for heard in found.heard[:-1]] == [heard.start for heard in found.heard[1:]]
    for heard in found.heard:
        assert 0 < heard.stop - heard.start <= 0.8
        path = tmp_path / "piece.wav"
        soundfile.write(path, whole[round(heard.start * RATE) : round(heard.stop * RATE)], RATE, subtype="FLOAT")
        (alone,) = listener(model).file(path).heard
        assert alone.text == heard.text and alone.hypothesis.nats == pytest.approx(heard.hypothesis.nats, abs=1e-4)
    texts = [heard.text for heard in found.heard if heard.text]
    assert found.text == " ".join(texts) and len(set(texts)) > 1


def test_a_recording_that_is_short_enough_is_one_piece(model: Transcriber) -> None:
    path = TONES / "000.flac"
    found = listener(model).file(path)
    (heard,) = found.heard
    assert (heard.start, heard.stop, found.text) == (0, found.seconds, heard.text) and found.seconds == soundfile.info(path).duration


def test_pieces_are_parted_by_a_space_where_the_model_knows_one() -> None:
    def transcript(separator: str) -> Transcript:
        heard = [Heard(0, 1, text, Hypothesis([], [], 0.0, True, torch.zeros(0, 0))) for text in ("ab", "", "c")]
        return Transcript(Path("a.wav"), heard, 1.0, 1.0, separator)

    assert transcript(" ").text == "ab c" and transcript("").text == "abc"


@pytest.mark.parametrize("characters, separator", [(" abcdefgh", " "), ("abcdefghi", "")])
def test_the_separator_is_of_the_vocabulary(model: Transcriber, characters: str, separator: str) -> None:
    assert listener(model, Vocabulary(("unknown", "end"), characters)).file(TONES / "000.flac").separator == separator


@pytest.mark.parametrize("seconds", [30.0, 0.8])
@pytest.mark.parametrize("beam_width", [1, 4])
def test_confidence_is_the_mean_probability_of_what_was_written_and_of_its_ends(
    model: Transcriber, long: Path, tmp_path: Path, seconds: float, beam_width: int
) -> None:
    """Against the same texts told to the decoder, which reads them at once."""
    found = listener(model, audio={"max_seconds": seconds}, beam_width=beam_width).file(long)
    nats: list[float] = []
    for heard in found.heard:
        path = tmp_path / "piece.wav"
        soundfile.write(path, samples()[round(heard.start * RATE) : round(heard.stop * RATE)], RATE, subtype="FLOAT")
        ids = heard.hypothesis.ids
        with torch.inference_mode():
            encoded = model.encode(finish(utterance(path, AUDIO), AUDIO).unsqueeze(1), None)
            logits = model(encoded, torch.tensor([END, *ids]).unsqueeze(1))[:, 0]
        logits = logits.index_fill(1, torch.tensor([0]), -torch.inf)  # unknown is never written
        asked = [*ids, END] if heard.hypothesis.finished else ids
        own = [-float(odds[i]) for odds, i in zip(logits.log_softmax(-1), asked)]
        assert heard.hypothesis.confidence == pytest.approx(math.exp(-sum(own) / len(own)), rel=1e-3)
        nats += own
    assert found.confidence == pytest.approx(math.exp(-sum(nats) / len(nats)), rel=1e-3) and 0 < found.confidence <= 1


def test_the_real_time_factor_is_what_it_took_by_the_length_of_the_sound(model: Transcriber, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(100.0, 2.5)
    monkeypatch.setattr("charrnn.transcribing.time.perf_counter", lambda: next(clock))
    path = TONES / "001.flac"
    found = listener(model).file(path)
    assert found.took == 2.5 and found.real_time_factor == pytest.approx(2.5 / soundfile.info(path).duration)


def test_what_comes_to_no_end_is_marked_wherever_it_is(model: Transcriber, long: Path) -> None:
    """A piece that is cut off is one that says so, and so is its recording."""
    free = listener(model, audio=SHORT).file(long)
    cut = listener(model, audio=SHORT, max_length=2).file(long)
    assert len(free.heard) == len(cut.heard)
    for whole, short in zip(free.heard, cut.heard):
        assert short.hypothesis.finished == (whole.hypothesis.finished and len(whole.text) <= 2)
        assert short.text == whole.text[:2] and len(short.hypothesis.nats) == len(short.hypothesis.ids) + short.hypothesis.finished
    assert {heard.hypothesis.finished for heard in cut.heard} == {True, False} and not cut.finished
    assert free.finished == all(heard.hypothesis.finished for heard in free.heard)


def test_each_recording_has_its_answer_in_its_place(model: Transcriber, tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    np.save(tmp_path / "wide.npy", np.zeros((5, 9), dtype=np.float32))
    np.save(tmp_path / "ready.npy", utterance(TONES / "000.flac", AUDIO).numpy())
    soundfile.write(tmp_path / "damaged.flac", samples(20), RATE)
    content = (tmp_path / "damaged.flac").read_bytes()
    (tmp_path / "damaged.flac").write_bytes(content[: len(content) // 2])  # found out after some pieces
    names: list[str | Path] = ["text.wav", TONES / "000.flac", "wide.npy", "ready.npy", "none.wav", "damaged.flac", TONES / "001.flac"]
    found = list(listener(model, audio=SHORT).files(tmp_path / name for name in names))
    assert [isinstance(one, Transcript) for one in found] == [False, True, False, True, False, False, True]
    for name, one in zip(names, found):
        if isinstance(one, DataError):
            assert str(one).startswith(f"{tmp_path / name}: ") and "\n" not in str(one)
        else:
            assert one.path == tmp_path / name
    assert str(found[2]).endswith("9 features a frame; expected 12, as the model has learned, so make the features in the same way")
    sound, ready = found[1], found[3]
    assert isinstance(sound, Transcript) and isinstance(ready, Transcript) and sound.text == ready.text
