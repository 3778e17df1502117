"""`charrnn transcribe`: a line for each recording, a line for each mistake, and the exit code that says so."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from charrnn.checkpoint import build_model, load_model, save_model
from charrnn.config import build_config
from charrnn.models.transcriber import Transcriber
from charrnn.tasks import load_task
from charrnn.transcribing import Transcribe
from tests.cli.learning import learn, runner
from tests.test_cli import Said

RATE = 4000
TONES = {"a": 400.0, "b": 1200.0, " ": 0.0}  # Hz
TEXTS = ("a", "b", "ab", "ba", "aa", "bb", "a b", "b a")

Run = Callable[..., Said]


def sound(text: str) -> np.ndarray:
    """A tenth of a second of tone for each letter, with a pause behind it."""
    time = np.arange(RATE // 10) / RATE
    silence = np.zeros(RATE // 20)
    return np.concatenate([part for c in text for part in (0.5 * np.sin(2 * np.pi * TONES[c] * time), silence)])


SETTINGS = {
    "task": "transcribe",
    "data": {
        "path": "train.tsv",
        "val_fraction": 0.0,
        "audio": {"sample_rate": RATE, "num_mels": 8, "window_length": 100, "hop_length": 50, "normalization": "global"},
    },
    "model": {
        "embedding_size": 6,
        "hidden_size": 12,
        "pyramid": {"levels": 1},
        "decoder": {"hidden_size": 12, "attention_size": 8, "location_filters": 2, "location_width": 2},
    },
    "train": {"max_steps": 1, "batch_size": 8, "precision": "fp32"},
}


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recordings, and a model that knows them by heart."""
    folder = tmp_path_factory.mktemp("learned")
    for i, text in enumerate(TEXTS):
        soundfile.write(folder / f"{i}.wav", sound(text), RATE)
    rows = "".join(f"{i}.wav\t{text}\n" for i, text in enumerate(TEXTS))
    (folder / "train.tsv").write_text(f"audio\ttranscript\n{rows}", encoding="utf-8")
    data = {**SETTINGS["data"], "path": str(folder / "train.tsv"), "cache": str(folder / "cache")}  # type: ignore[dict-item]
    learn(build_config({**SETTINGS, "data": data}, "test"), folder / "model.safetensors", 120)
    return folder


@pytest.fixture
def run(learned: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return runner(learned, "transcribe", capsys, tmp_path, monkeypatch)


def test_each_recording_gets_a_line(run: Run) -> None:
    said = run("model.safetensors", "2.wav", "7.wav")
    lines = said.out.splitlines()
    assert said.code == 0 and [line.split("%  ")[1] for line in lines] == ["2.wav  ab", "7.wav  b a"]
    assert "2 recordings, 0.8 s of sound in" in said.err and "real-time factor" in said.err


@pytest.mark.parametrize("beam", [["--beam", "4"], ["--beam", "4", "--ctc-weight", "0.3"], ["--beam", "1"]])
def test_a_folder_is_its_recordings_in_any_rate_and_with_any_search(run: Run, beam: list[str]) -> None:
    folder = Path("folder")
    folder.mkdir()
    faster = np.interp(np.arange(0, len(sound("ba")), 0.5), np.arange(len(sound("ba"))), sound("ba"))
    soundfile.write(folder / "stereo.flac", np.stack([faster, faster], 1), 2 * RATE)
    soundfile.write(folder / "plain.wav", sound("ab"), RATE)
    (folder / "notes.txt").write_text("not a recording")
    said = run("model.safetensors", "folder", *beam)
    assert said.code == 0 and [line.split()[-1] for line in said.out.splitlines()] == ["ab", "ba"]
    assert "charrnn: warning: folder: 1 file left out, by their names no recordings\n" in said.err


def test_json_tells_all(run: Run) -> None:
    (told,) = map(json.loads, run("model.safetensors", "6.wav", "--json").out.splitlines())
    assert told["file"] == "6.wav" and told["text"] == "a b" and told["finished"] is True
    assert told["seconds"] == pytest.approx(0.45) and 0.5 < told["confidence"] <= 1 and told["real_time_factor"] > 0
    (piece,) = told["pieces"]
    assert (piece["start"], piece["stop"], piece["text"]) == (0.0, pytest.approx(0.45), "a b")


def test_what_cannot_be_used_is_named_and_the_others_are_transcribed(run: Run) -> None:
    Path("text.wav").write_text("this is no sound")
    soundfile.write("silent.wav", np.zeros(0), RATE)
    soundfile.write("nan.wav", np.array([0.0, np.nan, 0.1]), RATE, subtype="FLOAT")
    np.save("wide.npy", np.zeros((5, 9), dtype=np.float32))
    Path("empty").mkdir()
    said = run("model.safetensors", "text.wav", "0.wav", "silent.wav", "nan.wav", "missing.wav", "wide.npy", "empty", "1.wav")
    assert said.code == 2 and [line.split("%  ")[1] for line in said.out.splitlines()] == ["0.wav  a", "1.wav  b"]
    faults = [line for line in said.err.splitlines() if line.startswith("charrnn: error: ")]
    assert len(faults) == 6
    for name in ("text.wav", "silent.wav", "nan.wav", "missing.wav", "wide.npy", "empty"):
        assert sum(line.startswith(f"charrnn: error: {name}: ") for line in faults) == 1, name
    assert said.err.endswith("6 of 8 could not be used\n")


def test_a_long_recording_is_read_in_pieces_and_that_is_said(run: Run) -> None:
    soundfile.write("long.wav", np.concatenate([sound("ab"), np.zeros(RATE // 10), sound("ba")]), RATE)
    said = run("model.safetensors", "long.wav", "--set", "data.audio.max_seconds=0.45", "--json")
    told = json.loads(said.out)
    assert "charrnn: warning: long.wav: 0.7 s long, so it is read in pieces of at most 0.45 s" in said.err
    assert len(told["pieces"]) >= 2 and told["pieces"][-1]["stop"] == pytest.approx(0.7)
    assert [a["stop"] for a in told["pieces"][:-1]] == [b["start"] for b in told["pieces"][1:]]
    assert told["text"] == " ".join(piece["text"] for piece in told["pieces"] if piece["text"])


def test_only_a_recording_of_one_piece_keeps_where_the_model_looked(run: Run) -> None:
    soundfile.write("long.wav", np.concatenate([sound("ab"), np.zeros(RATE // 10), sound("ba")]), RATE)
    loaded = load_model(Path("model.safetensors"), "cpu")
    audio, model = loaded.config.data.audio, build_model(loaded)
    assert isinstance(model, Transcriber)
    for seconds, steps in ((30.0, 28), (0.45, 0)):  # 0.7 s are 56 frames, two of which are a step
        settings = audio.model_copy(update={"max_seconds": seconds})
        found = Transcribe(model, loaded.vocabulary, settings, loaded.config.decoding).file(Path("long.wav"))
        looked = [heard.hypothesis for heard in found.heard]
        assert [one.alignment.shape for one in looked] == [(len(one.ids), steps) for one in looked]
        assert any(one.ids for one in looked)


def test_a_recording_that_breaks_off_is_transcribed_as_far_as_it_goes_and_no_row_to_learn_from(run: Run) -> None:
    soundfile.write("cut.wav", sound("ab"), RATE)
    content = Path("cut.wav").read_bytes()
    Path("cut.wav").write_bytes(content[: len(content) // 2 + 22])  # behind the a
    said = run("model.safetensors", "cut.wav")
    fact = "cut.wav: breaks off: 0.15 of 0.30 seconds, as its header has it, are there"
    assert said.code == 0 and said.out.split()[-1] == "a"
    assert f"charrnn: warning: {fact}; that is transcribed, so fetch the recording again if you want all of it\n" in said.err
    Path("another.tsv").write_text("audio\ttranscript\n0.wav\ta\ncut.wav\tab\n", encoding="utf-8")
    said = run("model.safetensors", "--file", "another.tsv", command="eval")
    remedy = "expected a whole recording, so fetch it again, or cut it there and its transcript too"
    assert said.code == 2 and f"charrnn: error: another.tsv: line 3: {fact}; {remedy}\n" in said.err
    assert "right: all of 1 utterance" in said.out


def test_a_text_without_an_end_is_marked(run: Run) -> None:
    said = run("model.safetensors", "2.wav", "--set", "decoding.max_length=1")
    assert said.code == 0 and said.out.rstrip().endswith("2.wav  a…")


def test_a_drawing_never_takes_the_place_of_what_a_link_leads_to(run: Run) -> None:
    Path("a.png").symlink_to("6.wav")
    before = Path("6.wav").read_bytes()
    said = run("model.safetensors", "6.wav", "--alignment", "a.png")
    assert said.code == 2 and "--alignment a.png: the same file as 6.wav, which this command reads; expected another" in said.err
    assert Path("6.wav").read_bytes() == before


def test_the_alignment_is_drawn_of_one_recording(run: Run) -> None:
    assert run("model.safetensors", "6.wav", "--alignment", "a.png").code == 0
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    assert run("model.safetensors", "6.wav", "7.wav", "--alignment", "b.png") == Said(
        2, "", "charrnn: error: --alignment: 2 recordings; expected one, of which a picture can be drawn\n"
    )
    assert not Path("b.png").exists()


def language_model(text: str) -> None:
    Path("text.txt").write_text(text, encoding="utf-8")
    settings = {"data": {"path": "text.txt", "documents": "lines", "val_fraction": 0.0}, "model": {"embedding_size": 4, "hidden_size": 8}}
    learn(build_config({**settings, "train": {"max_steps": 1, "batch_size": 4, "tbptt_window": 8}}, "test"), Path("lm.safetensors"), 60)


def test_a_language_model_has_a_say(run: Run) -> None:
    language_model("ba\n" * 60)
    without = run("model.safetensors", "2.wav", "--beam", "6").out.split()[-1]
    told = run("model.safetensors", "2.wav", "--beam", "6", "--lm", "lm.safetensors", "--lm-weight", "10")
    assert without == "ab" and told.out.split()[-1] == "ba"
    assert "charrnn: warning: lm.safetensors: does not know ' ', which the transcripts have; it takes them for unknown\n" in told.err


MISTAKES = {
    "nothing to transcribe": (["model.safetensors"], "model.safetensors: a model, and nothing to transcribe; expected recordings"),
    "no beam": (["model.safetensors", "0.wav", "--beam", "0"], "--beam 0: expected 1 to 1,000 hypotheses; 1 is greedy"),
    "weight": (["model.safetensors", "0.wav", "--ctc-weight", "1"], "--ctc-weight 1: expected a share from 0 up and below 1"),
    "lm weight": (["model.safetensors", "0.wav", "--lm-weight", "-1"], "--lm-weight -1: expected a number from 0 to 10"),
    "lm": (["model.safetensors", "0.wav", "--lm", "model.safetensors"], "charrnn transcribe --lm needs one of task lm"),
    "lm weight alone": (["model.safetensors", "0.wav", "--lm-weight", "2"], "--lm-weight 2: there is no --lm whose opinion it could be"),
    "no run": (["0.wav"], "no model is named, and no run under"),
    "no model": (["runs/none", "0.wav"], "runs/none: neither a model nor a recording; expected a run directory, a model"),
    "mels": (["model.safetensors", "0.wav", "--set", "data.audio.num_mels=9"], "data.audio.num_mels is 8, and --set makes it 9; expected"),
    "deltas": (["model.safetensors", "0.wav", "--set", "data.audio.deltas=1"], "data.audio.deltas is 0, and --set makes it 1; expected"),
    "model": (["model.safetensors", "0.wav", "--set", "model.hidden_size=9"], "model.hidden_size is 12, and --set makes it 9; expected"),
    "decoder": (
        ["model.safetensors", "0.wav", "--set", "model.decoder.ctc_weight=0"],
        "model.decoder.ctc_weight is 0.3, and --set makes it 0.0; expected the model as it was trained, so leave it out",
    ),
    "another": (["model.safetensors", "0.wav", "--alignment", "1.wav"], "--alignment 1.wav: expected a name that ends in .png;"),
    "place": (["model.safetensors", "0.wav", "--alignment", "no/where.png"], "--alignment no/where.png: cannot be written"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(run: Run, mistake: str) -> None:
    arguments, line = MISTAKES[mistake]
    said = run(*arguments)
    assert (said.code, said.out) == (2, "") and line in said.err and said.err.count("\n") == 1


def test_a_model_without_ctc_cannot_be_asked_for_it(run: Run) -> None:
    data = {**SETTINGS["data"], "cache": "cache"}  # type: ignore[dict-item]
    model = {**SETTINGS["model"], "decoder": {"ctc_weight": 0}}  # type: ignore[dict-item]
    config = build_config({**SETTINGS, "data": data, "model": model}, "test")
    task = load_task(config)
    save_model(Path("plain.safetensors"), task.model(), config, task.vocabulary, 0, {})
    said = run("plain.safetensors", "0.wav", "--ctc-weight", "0.3")
    assert said == Said(2, "", "charrnn: error: --ctc-weight 0.3: plain.safetensors was trained without CTC; expected 0, so leave it out\n")


def test_the_newest_run_is_taken_and_named(run: Run) -> None:
    """Also where a folder is named first that might have been meant for a model."""
    for at, name in enumerate(("old", "new")):
        Path("runs", name).mkdir(parents=True)
        shutil.copy("model.safetensors", f"runs/{name}/best.safetensors")
        os.utime(f"runs/{name}/best.safetensors", (at, at))
    Path("runs/none").mkdir()
    shutil.copy("2.wav", "runs/none/2.wav")
    for names in (["2.wav"], ["runs/none"]):
        said = run(*names)
        assert said.code == 0 and said.out.split()[-1] == "ab"
        assert said.err.startswith("charrnn: no model is named, so the newest run is taken: runs/new/best.safetensors\n")
    assert "the newest run is taken" not in run("runs/old", "2.wav").err


def test_eval_tells_the_error_rates_and_the_worst(run: Run) -> None:
    Path("another.tsv").write_text("audio\ttranscript\n0.wav\ta\n1.wav\tb\n2.wav\tabba\n3.wav\tba\n", encoding="utf-8")
    said = run("model.safetensors", "--file", "another.tsv", command="eval")
    assert said.code == 0 and "char_error_rate" in said.out and "sentence_accuracy        0.7500" in said.out
    assert "3 of 4 utterances are right; the farthest from it:" in said.out
    assert ["50.0%", "abba", "ab", "2.wav"] in [line.split() for line in said.out.splitlines()]
    assert all(line == line.rstrip() for line in said.out.splitlines())
    figures = json.loads(run("model.safetensors", "--file", "another.tsv", "--json", "--set", "decoding.beam_width=3", command="eval").out)
    assert figures["char_error_rate"] == pytest.approx(2 / 8) and figures["sentence_accuracy"] == 0.75


def test_eval_does_not_change_what_a_model_is_made_of(run: Run) -> None:
    said = run("model.safetensors", "--set", "model.cell=gru", command="eval")
    fact = "model.cell is 'lstm', and --set makes it 'gru'; expected the model as it was trained, so leave it out"
    assert said == Said(2, "", f"charrnn: error: model.safetensors: {fact}\n")


def test_eval_does_not_hear_otherwise_than_the_model_has_learned(run: Run) -> None:
    said = run("model.safetensors", "--set", "data.audio.normalization=utterance", command="eval")
    fact = "data.audio.normalization is 'global', and --set makes it 'utterance'"
    assert said == Said(2, "", f"charrnn: error: model.safetensors: {fact}; expected what the weights have learned from, so leave it out\n")


FAULTY = {  # name: what is wrong with it, by what is said of it
    "none.wav": "no such file; expected a recording at none.wav, so mend the path or take the row out",
    "text.wav": "not audio that can be read (",
    "silent.wav": "holds no samples; expected a recording with some sound in it",
    "nan.wav": "a sample at 0.0003 seconds is nan; expected numbers in -1 to 1, so write the recording again",
    "long.wav": "3.00 seconds long; expected at most 2, which is data.audio.max_seconds, so cut the recording or raise that",
    "wide.npy": "9 features a frame; expected 8, which is data.audio.num_mels, so set that to what the features have",
}
SHORT = ("--set", "data.audio.max_seconds=2")


def faulty(path: str, *rows: tuple[str, str]) -> list[int]:
    """A manifest with these rows, and between them all that cannot be used: its lines."""
    Path("text.wav").write_text("this is no sound")
    soundfile.write("silent.wav", np.zeros(0), RATE)
    soundfile.write("nan.wav", np.array([0.0, np.nan, 0.1]), RATE, subtype="FLOAT")
    soundfile.write("long.wav", np.zeros(3 * RATE), RATE)
    np.save("wide.npy", np.zeros((5, 9), dtype=np.float32))
    mixed = [*rows[:1], *((name, "ab") for name in FAULTY), ("3.wav", " "), *rows[1:]]
    if path.endswith("tsv"):
        lines = ["audio\ttranscript", *("\t".join(row) for row in mixed)]
    else:
        lines = [json.dumps({"audio": audio, "transcript": text}) for audio, text in mixed]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
    first = lines.index(lines[-len(mixed)]) + 2
    return list(range(first, first + len(FAULTY) + 1))


@pytest.mark.parametrize("manifest", ["another.tsv", "another.jsonl"])
def test_eval_names_each_row_that_cannot_be_used_and_measures_the_others(run: Run, manifest: str) -> None:
    lines = faulty(manifest, ("0.wav", "a"), ("1.wav", "b"), ("2.wav", "abba"))
    said = run("model.safetensors", "--file", manifest, *SHORT, command="eval")
    assert said.code == 2 and "2 of 3 utterances are right; the farthest from it:" in said.out
    told = [line for line in said.err.splitlines() if line.startswith(f"charrnn: error: {manifest}: ")]
    assert len(told) == len(lines) == len(FAULTY) + 1
    for (name, fact), line in zip(FAULTY.items(), lines):
        (one,) = (line_ for line_ in told if name in line_)
        assert f"line {line}" in one and fact in one
    assert f"line {lines[-1]}): field 'transcript' is empty; expected text, so fill it or take the row out" in said.err
    assert said.err.endswith(f"7 rows of {manifest} could not be used as expected\n")
    figures = run("model.safetensors", "--file", manifest, *SHORT, "--json", command="eval")
    assert figures.code == 2 and json.loads(figures.out)["char_error_rate"] == pytest.approx(2 / 6) and figures.err == said.err


def test_eval_names_transcripts_that_the_model_cannot_write_and_measures_them(run: Run) -> None:
    Path("another.tsv").write_text("audio\ttranscript\n0.wav\ta\n2.wav\tabéz\n", encoding="utf-8")
    said = run("model.safetensors", "--file", "another.tsv", command="eval")
    fact = "the model does not know 'é' (U+00E9), 'z' (U+007A); expected characters that it has learned, so mend the transcript"
    assert said.code == 2 and f"charrnn: error: another.tsv: line 3: {fact}; it is measured, and each of them is an error\n" in said.err
    assert "1 of 2 utterances are right" in said.out and ["50.0%", "ab\ufffd\ufffd", "ab", "2.wav"] in [
        line.split() for line in said.out.splitlines()
    ]


def test_eval_of_nothing_but_faults_names_them(run: Run) -> None:
    Path("another.tsv").write_text("audio\ttranscript\nnone.wav\ta\ntext.wav\tb\n", encoding="utf-8")
    Path("text.wav").write_text("this is no sound")
    said = run("model.safetensors", "--file", "another.tsv", command="eval")
    assert (said.code, said.out) == (2, "") and [line.split(": ")[3] for line in said.err.splitlines()] == ["record 1 (line 2)", "line 3"]


@pytest.mark.parametrize("manifest", ["another.tsv", "another.jsonl"])
@pytest.mark.parametrize("dry", [True, False])
def test_training_names_all_rows_that_cannot_be_used_and_does_not_begin(run: Run, manifest: str, dry: bool) -> None:
    lines = faulty(manifest, ("0.wav", "a"), ("1.wav", "b"), ("2.wav", "abba"))
    config = build_config({**SETTINGS, "data": {**SETTINGS["data"], "cache": "own-cache"}}, "test")  # type: ignore[dict-item]
    Path("config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    for broken, sound_ in ((manifest, "train.tsv"), ("train.tsv", manifest)):
        names = ("--set", f"data.path={broken}", "--set", f"data.val_path={sound_}", "--set", "run=run", *SHORT)
        said = run("--config", "config.yaml", *names, *(["--dry-run"] if dry else []), command="train")
        told = said.err.splitlines()
        assert said.code == 2 and all(line.startswith(f"charrnn: error: {manifest}: ") for line in told)
        # First the rows, then what lies behind those that can be read.
        assert [line for line in told if ": record " in line] == told[:2] and len(told) == len(lines)
        assert all(sum(name in line for line in told) == 1 for name in FAULTY)
        assert not Path("run/last.safetensors").exists() and not list(Path("own-cache").glob("audio-*"))


def test_training_tells_of_very_many_rows_the_first(run: Run) -> None:
    rows = "".join(f"none{n}.wav\ta\n" for n in range(50))
    Path("another.tsv").write_text(f"audio\ttranscript\n{rows}0.wav\ta\n", encoding="utf-8")
    Path("config.yaml").write_text(build_config(SETTINGS, "test").to_yaml(), encoding="utf-8")
    said = run("--config", "config.yaml", "--set", "data.path=another.tsv", "--set", "data.cache=cache", command="train")
    assert said.code == 2 and said.err.count("\n") == 21 and said.err.endswith("charrnn: error: and 30 more that cannot be used\n")


def test_eval_of_a_split_names_all_recordings_that_are_gone(run: Run) -> None:
    Path("1.wav").unlink()
    Path("2.wav").write_text("this is no sound")
    said = run("model.safetensors", "--split", "train", "--set", "data.path=train.tsv", command="eval")
    first, *others = said.err.splitlines()
    remedy = "give a text with --file, or say where the text is now: --set data.path=…"
    assert first == f"charrnn: error: model.safetensors: train.tsv, which it was trained on, cannot be read as it was; {remedy}"
    assert said.code == 2 and [line.split(": ")[3] for line in others] == ["record 2 (line 3)", "line 4"]


def test_info_tells_the_pyramid(run: Run) -> None:
    said = run("model.safetensors", command="info")
    assert "encoder     lstm, layers of 12: 1 + 1 that read 2 steps as one, 2 frames a step\n" in said.out
    assert "decoder     lstm, 1 × 12, embedding 6, location-aware attention of 8, beside it CTC\n" in said.out
