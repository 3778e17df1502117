"""`charrnn transcribe`: what is said in recordings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from charrnn.cli.arguments import Device, Overrides, Wanted, config_of, expect_beam, files_named, load, model_first
from charrnn.cli.output import end_with, expect_apart, expect_place, json_line, tell, warn, watched, write_bytes
from charrnn.errors import DataError, UserError, counted, printable

if TYPE_CHECKING:
    from charrnn.config import AudioConfig
    from charrnn.data.vocabulary import Vocabulary
    from charrnn.decoding import Fusion
    from charrnn.transcribing import Transcript

SOUND = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64", ".rf64", ".npy"})
RECORDINGS = Wanted("recording", SOUND, ".wav, .flac, .ogg or .npy")
LM_WEIGHT = 0.3


def transcribe(
    files: Annotated[
        list[str],
        typer.Argument(metavar="[MODEL] FILE|FOLDER...", help="a run directory or model file, by default the newest run; recordings"),
    ],
    beam: Annotated[
        int | None, typer.Option(metavar="N", help="beam search with so many hypotheses; 1 is greedy; by default as in the config")
    ] = None,
    ctc_weight: Annotated[float | None, typer.Option(metavar="W", help="of the encoder's own opinion in beam search, 0 to 1")] = None,
    lm: Annotated[str | None, typer.Option(metavar="MODEL", help="a model of task lm that has a say in beam search")] = None,
    lm_weight: Annotated[float | None, typer.Option(metavar="W", help=f"of that model's opinion; by default {LM_WEIGHT:g}")] = None,
    alignment: Annotated[
        Path | None, typer.Option(metavar="PNG", help="draw where the model listened for each character; of one recording")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="a JSON object for each recording")] = False,
    device: Device = "auto",
    set_: Overrides = None,
) -> None:
    """Write down what is said in recordings: WAV, FLAC, OGG and what else libsndfile reads, or ready features in .npy.

    A line for each: how sure the model is of its characters, the file and the text; "…" behind a text that came to no end. A file that
    cannot be used is named on standard error; the others are transcribed, and the exit code is 2.
    """
    model, named = model_first(files, RECORDINGS)
    if not named:
        raise UserError(f"{printable(files[0])}: a model, and nothing to transcribe; expected recordings or folders of them behind it")
    expect_beam(beam)
    if ctc_weight is not None and not 0 <= ctc_weight < 1:
        raise UserError(f"--ctc-weight {ctc_weight:g}: expected a share from 0 up and below 1; 0.3 is usual")
    overrides = [*(set_ or [])]
    overrides += [f"decoding.beam_width={beam}"] if beam is not None else []
    overrides += [f"decoding.ctc_weight={ctc_weight}"] if ctc_weight is not None else []
    if lm_weight is not None and not 0 <= lm_weight <= 10:
        raise UserError(f"--lm-weight {lm_weight:g}: expected a number from 0 to 10; {LM_WEIGHT:g} is usual")
    if lm_weight is not None and lm is None:
        raise UserError(f"--lm-weight {lm_weight:g}: there is no --lm whose opinion it could be; name a model of task lm with --lm")
    if alignment is not None:
        from charrnn.plots import require_matplotlib

        require_matplotlib("--alignment")
        expect_place(alignment, "--alignment", (".png",))
    from charrnn.models.transcriber import Transcriber
    from charrnn.transcribing import Transcribe

    loaded, network = load(model, device, "transcribe")
    assert isinstance(network, Transcriber)
    if network.ctc is None and ctc_weight:
        raise UserError(f"--ctc-weight {ctc_weight:g}: {loaded.path} was trained without CTC; expected 0, so leave it out")
    config = config_of(loaded, overrides)
    fusion = None if lm is None else _fusion(lm, device, loaded.vocabulary, LM_WEIGHT if lm_weight is None else lm_weight)
    faults: list[DataError] = []
    recordings = list(files_named(named, RECORDINGS, faults))
    if alignment is not None and len(recordings) != 1:
        raise UserError(f"--alignment: {counted(len(recordings), 'recording')}; expected one, of which a picture can be drawn")
    if alignment is not None:
        expect_apart(alignment, recordings, [loaded.path], "--alignment")
    for fault in faults:
        tell(fault)
    listener = Transcribe(network, loaded.vocabulary, config.data.audio, config.decoding, fusion)
    seconds = took = 0.0
    count = 0
    for found in watched(listener.files(_announced(recordings, config.data.audio)), " recordings", len(recordings)):
        if isinstance(found, DataError):
            faults.append(found)
            tell(found)
            continue
        count, seconds, took = count + 1, seconds + found.seconds, took + found.took
        typer.echo(_as_json(found) if as_json else _line(found))
        if alignment is not None:
            _draw(alignment, found)
    if count:
        factor = f"real-time factor {took / max(seconds, 1e-9):.3f}"
        typer.echo(f"{counted(count, 'recording')}, {seconds:,.1f} s of sound in {took:,.2f} s: {factor}", err=True)
    end_with(len(faults), f"{len(faults):,} of {len(faults) + count:,} could not be used")


def _fusion(name: str, device: str, vocabulary: Vocabulary, weight: float) -> Fusion:
    from charrnn.decoding import Fusion
    from charrnn.models.char_rnn import CharRNN

    loaded, network = load(name, device, "lm", "transcribe --lm")
    assert isinstance(network, CharRNN)
    if strangers := [character for character in vocabulary.characters if character not in loaded.vocabulary]:
        shown = " ".join(map(repr, strangers[:8])) + (" …" if len(strangers) > 8 else "")
        warn(f"{loaded.path}: does not know {shown}, which the transcripts have; it takes them for unknown")
    return Fusion(network, loaded.vocabulary, vocabulary, weight)


def _announced(recordings: list[Path], config: AudioConfig) -> Iterator[Path]:
    """Each recording; of a long one is said first how it will be read, and of one that breaks off, that it does."""
    from charrnn.data.audio import duration, shortfall

    for path in recordings:
        try:
            seconds, fact = duration(path, config), shortfall(path)
        except DataError:  # told of when it is read
            seconds, fact = 0.0, None
        if fact:
            warn(f"{path}: {fact}; that is transcribed, so fetch the recording again if you want all of it")
        if seconds > config.max_seconds:
            pieces = f"pieces of at most {config.max_seconds:g} s (data.audio.max_seconds), cut where it is quietest"
            warn(f"{path}: {seconds:,.1f} s long, so it is read in {pieces}")
        yield path


def _line(found: Transcript) -> str:
    return f"{found.confidence:6.1%}  {printable(str(found.path))}  {printable(found.text)}{'' if found.finished else '…'}"


def _as_json(found: Transcript) -> str:
    told = {
        "file": str(found.path),
        "text": found.text,
        "confidence": found.confidence,
        "finished": found.finished,
        "seconds": found.seconds,
        "real_time_factor": found.real_time_factor,
        "pieces": [
            {
                "start": heard.start,
                "stop": heard.stop,
                "text": heard.text,
                "confidence": heard.hypothesis.confidence,
                "finished": heard.hypothesis.finished,
            }
            for heard in found.heard
        ],
    }
    return json_line(told)


def _draw(path: Path, found: Transcript) -> None:
    from charrnn.plots import alignment_png

    if len(found.heard) > 1:
        raise UserError(f"--alignment: {found.path} was read in {len(found.heard)} pieces; expected a recording of one, so cut it")
    (heard,) = found.heard
    picture, note = alignment_png(heard.hypothesis.alignment, heard.text, heard.stop)
    write_bytes(path, picture, "--alignment")
    if note:
        warn(f"{path}: {note}")
