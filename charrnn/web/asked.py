"""What may be asked: each request as typed, bounded fields. The descriptions are those of the OpenAPI text."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from charrnn.errors import UserError, printable, short
from charrnn.web import limits

Stop = Annotated[str, StringConstraints(min_length=1, max_length=100)]
SAID = 200  # characters of what a message repeats


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    model: str | None = Field(None, max_length=200, description="a name from /v1/models; left out, the first that can do it")


class SampleAsked(Asked):
    prime: str = Field("", max_length=limits.PRIME, description="text to go on from; empty: a fresh start")
    length: int | None = Field(
        None, ge=1, le=limits.LENGTH, description="new characters at most; left out, 500, or as many as the verse that is asked for takes"
    )
    temperature: float = Field(0.8, ge=0, le=10, description="0 is greedy, 1 is the model's own odds")
    top_k: int | None = Field(None, ge=1, le=1 << 21, description="only the k most probable characters")
    top_p: float | None = Field(None, gt=0, le=1, description="only the most probable that together hold this share")
    min_p: float | None = Field(None, ge=0, le=1, description="only those at least this share as probable as the best")
    repetition_penalty: float = Field(1.0, ge=1e-6, le=1e6, description="above 1 makes recent characters less probable")
    repetition_window: int = Field(64, ge=1, le=limits.LENGTH, description="so many characters are recent")
    no_repeat_ngram: int = Field(0, ge=0, le=limits.LENGTH, description="never a run of so many characters twice; 0 is off")
    seed: int | None = Field(None, ge=0, lt=1 << 63, description="the same seed writes the same text; left out, any, and it is told")
    stop: list[Stop] = Field([], max_length=8, description="end when one of these was written")
    form: str | None = Field(
        None, min_length=1, max_length=20, description="verse in form: 五绝, 七绝, 五律, 七律 or NxM, lines x characters"
    )
    rhyme: bool = Field(False, description="the even lines rhyme, in Chinese")
    tone: bool = Field(False, description="the tones 平仄 of regulated verse, in a form of 5 or 7 characters")
    acrostic: str = Field("", max_length=limits.ACROSTIC, description="each line begins with the next of these characters")
    acrostic_at: Literal["start", "end"] = Field("start", description="where in its line; end is 藏尾")
    lines: int | None = Field(None, ge=1, le=limits.LINES, description="end after so many lines")
    max_line: int | None = Field(None, ge=1, le=limits.LINE, description="characters of a line at most")
    stream: bool = Field(False, description="server-sent events while it is written, in the place of one answer")
    pace: float | None = Field(
        None, ge=1, le=10_000, description="characters a second at most, of a stream; left out, as fast as they come"
    )


class ScoreAsked(Asked):
    text: str = Field(min_length=1, max_length=limits.TEXT, description="one document")


class FillAsked(Asked):
    text: str = Field(min_length=1, max_length=limits.FILL_TEXT, description="each _, ＿ or □ is one character to be found")
    top: int = Field(5, ge=1, le=20, description="so many fillings")


class TextAsked(Asked):
    text: str = Field(min_length=1, max_length=limits.TEXT, description="what is to be read")


class MediaAsked(Asked):
    model_config = ConfigDict(extra="forbid", strict=False, frozen=True)  # it comes as the text behind a `?`

    beam: int | None = Field(None, ge=1, le=16, description="beam search with so many hypotheses; 1 is greedy")


class CaptionAsked(MediaAsked):
    num: int = Field(1, ge=1, le=10, description="captions: the best of the beam")


AskedT = TypeVar("AskedT", bound=Asked)


def parse(kind: type[AskedT], body: bytes | dict[str, str]) -> AskedT:
    """A request from JSON, or from what stands behind the `?` of an address. Raises UserError, one line naming the field."""
    try:
        return kind.model_validate_json(body) if isinstance(body, bytes) else kind.model_validate(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        place = ".".join(map(str, found[0]["loc"])) or "body"
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise UserError(f"{short(place)[1:-1]}: {_said(found[0])}{more}") from None


def _said(fault: Any) -> str:
    message = str(fault["msg"])[:SAID]
    message = message[:1].lower() + message[1:]
    value = fault["input"]
    plain = isinstance(value, (int, float, str)) and fault["type"] != "json_invalid"
    return printable(f"{message}; it is {short(value)}" if plain else message)
