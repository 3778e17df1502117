"""`charrnn caption`: what is in pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from charrnn.cli.arguments import Device, Overrides, Wanted, config_of, expect_beam, expect_seed, files_named, load, model_first
from charrnn.cli.output import end_with, expect_apart, expect_place, json_line, tell, warn, watched, write_bytes
from charrnn.errors import DataError, UserError, counted, printable

if TYPE_CHECKING:
    from charrnn.captioning import Caption, Described
    from charrnn.gallery import Figure

PICTURES = Wanted("picture", frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp"}), ".jpg, .png or .webp")
FEATURES = Wanted("feature file", frozenset({".npy", ".safetensors"}), ".npy or .safetensors")
EITHER = Wanted("picture", PICTURES.endings | FEATURES.endings, PICTURES.such_as)
MOST = 1000  # captions of a picture, as many as the widest beam has


def caption(
    files: Annotated[
        list[str],
        typer.Argument(metavar="[MODEL] FILE|FOLDER...", help="a run directory or model file, by default the newest run; pictures"),
    ],
    beam: Annotated[
        int | None, typer.Option(metavar="N", help="beam search with so many hypotheses; 1 is greedy; by default as in the config")
    ] = None,
    num: Annotated[int, typer.Option(metavar="N", help="captions of each picture: the best of the beam, or so many draws")] = 1,
    temperature: Annotated[
        float | None, typer.Option("--temperature", "-t", metavar="T", help="draw captions; 1 is the model's own odds, 0 greedy")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="draw only from the k most probable characters")] = None,
    top_p: Annotated[float | None, typer.Option(help="draw only from the most probable that together hold this share")] = None,
    seed: Annotated[int | None, typer.Option(help="the same seed draws the same captions of a picture")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="a JSON object for each picture")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write a page of the pictures with their captions, and where the model looked")
    ] = None,
    device: Device = "auto",
    set_: Overrides = None,
) -> None:
    """Tell what is in pictures: JPEG, PNG, WebP, GIF or BMP, or ready features for a model that has learned from such.

    A line for each caption: how sure the model is of its characters, the file and the text; "…" behind a text that came to no end. A file
    that cannot be used is named on standard error; the others are told of, and the exit code is 2.
    """
    model, named = model_first(files, EITHER)
    if not named:
        raise UserError(f"{printable(files[0])}: a model, and nothing to tell of; expected pictures or folders of them behind it")
    _refuse(beam, num, temperature, {"--top-k": top_k, "--top-p": top_p, "--seed": seed})
    if html is not None:
        expect_place(html, "--html", (".html", ".htm"))
    from charrnn.captioning import Describe, Draws, alike
    from charrnn.models.captioner import Captioner
    from charrnn.options import SamplingOptions

    draws = None
    if temperature is not None:
        options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p)
        draws = Draws(options, _any_seed() if seed is None else seed)
    loaded, network = load(model, device, "caption")
    assert isinstance(network, Captioner)
    overrides = [*(set_ or []), *([f"decoding.beam_width={beam}"] if beam is not None else [])]
    config = config_of(loaded, overrides)
    decoding, images = config.decoding, config.data.images
    if num > decoding.beam_width and draws is None:
        if beam is not None:
            raise UserError(f"--num {num}: a beam of {beam} has no more than that; raise --beam, or draw with --temperature")
        decoding = decoding.model_copy(update={"beam_width": num})
    faults: list[DataError] = []
    pictures = list(files_named(named, PICTURES if images.features is None else FEATURES, faults))
    if html is not None:
        expect_apart(html, pictures, [loaded.path], "--html")
    for fault in faults:
        tell(fault)
    describe = Describe(network, loaded.vocabulary, images, decoding, count=num, draws=draws, thumbnails=html is not None)
    written: dict[bytes, str] = {}
    figures: list[Figure] = []
    took, count = 0.0, 0
    for found in watched(describe.files(pictures), " pictures", len(pictures)):
        if isinstance(found, DataError):
            faults.append(found)
            tell(found)
            continue
        count, took = count + 1, took + found.took
        written[found.content] = found.captions[0].text
        for line in [_as_json(found)] if as_json else _lines(found):
            typer.echo(line)
        if html is not None:
            from charrnn.gallery import figure

            figures.append(figure(found))
    if html is not None and figures:
        from charrnn.gallery import page

        write_bytes(html, page(figures, str(loaded.path), faults, network.speller is not None).encode(), "--html")
    elif html is not None:
        warn(f"--html {printable(str(html))}: not written, for no picture could be used")
    if count:
        typer.echo(f"{counted(count, 'picture')} in {took:,.2f} s: {count / max(took, 1e-9):,.1f} a second", err=True)
    if common := alike(written):
        text, number = common
        fact = f"{number:,} of {counted(len(written), 'different picture')} are told of alike, {printable(text)!r}"
        warn(f"{fact}: the model has not learned to look; charrnn eval measures it")
    end_with(len(faults), f"{len(faults):,} of {len(faults) + count:,} could not be used")


def _refuse(beam: int | None, num: int, temperature: float | None, drawing: dict[str, float | None]) -> None:
    """Options that cannot mean anything, or that contradict each other."""
    expect_beam(beam)
    if not 1 <= num <= MOST:
        raise UserError(f"--num {num}: expected 1 to {MOST:,} captions of each picture")
    expect_seed(drawing["--seed"])
    if temperature is None:
        for flag, value in drawing.items():
            if value is not None:
                raise UserError(f"{flag} {value}: of captions that are drawn, and none are; add --temperature, or leave {flag} out")
    elif beam is not None:
        raise UserError("--beam and --temperature are both given; expected one of them, for a beam search draws nothing; leave --beam out")
    elif temperature == 0 and num > 1:
        raise UserError(f"--num {num} with --temperature 0: expected a temperature above 0, for the greedy captions are all the same")


def _any_seed() -> int:
    import secrets

    return secrets.randbits(63)


def _lines(found: Described) -> Iterator[str]:
    for one in found.captions:
        end = "" if one.hypothesis.finished else "…"
        yield f"{one.hypothesis.confidence:6.1%}  {printable(str(found.path))}  {printable(one.text)}{end}"


def _as_json(found: Described) -> str:
    captions = [_told(one) for one in found.captions]
    return json_line({"file": str(found.path), "captions": captions, "seconds": found.took})


def _told(one: Caption) -> dict[str, object]:
    sure = one.hypothesis
    return {"text": one.text, "confidence": sure.confidence, "nats": sum(sure.nats), "finished": sure.finished}
