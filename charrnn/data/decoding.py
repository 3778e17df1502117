"""Bytes to text: in the encoding that is given, or in one that is found by looking at all of the bytes, and told."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from charrnn.data.files import OnBytes, Source
from charrnn.errors import DataError

PIECE = 1 << 20  # bytes read at a time
SAMPLE = 1 << 16  # bytes that are looked at to tell one encoding from another
AUTO = "auto"
ENCODINGS = "utf-8, utf-16, gb18030, big5, shift_jis or cp1252"
FOREIGN = ("gb18030", "big5", "shift_jis", "cp1252")  # what text that is not UTF-8 may be in
MARKS = ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
MESS = 0.5  # above this share of unlikely characters, charset-normalizer's, nothing is proposed
FEW = 64  # bytes outside ASCII: what they show of an encoding may be chance
DAMAGED = 16  # bytes more than there are characters, in UTF-8 before the first byte that is none: it is UTF-8, and damaged
KANA_SHARE = 0.2  # of the characters outside ASCII: Japanese is full of hiragana; Chinese read as Shift-JIS, of half-width katakana
LATIN_SHARE = 0.25  # of the bytes outside ASCII: text in Latin letters has fewer, Chinese and Japanese more
_HALF = re.compile(b"\xed[\xa0-\xbf]([\x80-\xbf]|$)")  # half of a character, as CESU-8 writes it: UTF-8, and damaged
_BOTH_HALVES = re.compile(b"\xed[\xa0-\xaf][\x80-\xbf]\xed[\xb0-\xbf][\x80-\xbf]")  # one character of CESU-8, and hardly anything else
_HALVES = re.compile("[\ud800-\udfff]+")


def read_text(
    file: Path | Source,
    encoding: str = "utf-8",
    on_bytes: OnBytes | None = None,
    *,
    errors: Literal["strict", "surrogateescape"] = "strict",
) -> Iterator[str]:
    """The text of a file in pieces: BOM dropped, line ends made `\\n`, `.gz` unpacked. `on_bytes` hears how many were read.

    Raises DataError naming file and byte offset where the bytes are not text in that encoding; with `surrogateescape` such a byte
    becomes half of a character, for who looks at each line and can do without some.
    """
    source = file if isinstance(file, Source) else Source(file)
    encoding = detect(source) if encoding == AUTO else encoding
    decoder = codec(encoding).incrementaldecoder(errors)
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset = 0  # in the text's bytes
    begun = False
    with source.opened(on_bytes) as raw:
        while True:
            piece = raw.read(PIECE)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                raise DataError(_undecodable(source, encoding, offset - pending + error.start)) from None
            except UnicodeError:  # utf-16 without its byte order mark, and rare encodings, do not say where
                raise DataError(_undecodable(source, encoding, offset - pending)) from None
            offset += len(piece)
            if text and not begun:
                begun, text = True, text.removeprefix("\ufeff")
            yield newlines.decode(text, final=not piece)
            if not piece:
                return


def halves(text: str) -> str | None:
    """What of a text is no character: bytes that `surrogateescape` let through, or a surrogate; None where all are whole."""
    found = _HALVES.search(text)
    if found is None:
        return None
    points = list(map(ord, found[0][:6]))
    if all(0xDC80 <= point <= 0xDCFF for point in points):
        return f"byte{'' if len(points) == 1 else 's'} " + " ".join(f"{point - 0xDC00:02X}" for point in points)
    return " ".join(f"U+{point:04X}" for point in points)


def codec(encoding: str) -> codecs.CodecInfo:
    """Raises DataError where there is no such encoding of text."""
    try:
        found = codecs.lookup(encoding)
    except (LookupError, ValueError):
        raise DataError(f"data.encoding {encoding!r}: Python knows no such encoding; try {ENCODINGS}") from None
    if not getattr(found, "_is_text_encoding", True):
        raise DataError(f"data.encoding {encoding!r}: not a text encoding; try {ENCODINGS}")
    # utf-8-sig would hide where in the bytes an error is.
    return codecs.lookup("utf-8") if found.name == "utf-8-sig" else found


def opening_text(source: Source, encoding: str) -> str:
    """How a text begins, for a look at what it is: what cannot be decoded is replaced."""
    with source.opened() as raw:
        start = raw.read(SAMPLE)
    if encoding == AUTO:
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            decoder.decode(start)
            encoding = _wide(start) or "utf-8"
        except UnicodeDecodeError:
            encoding = _wide(start) or _likeliest(start, [name for name in FOREIGN if _decodes([start], name)]) or "utf-8"
    try:
        text = codec(encoding).incrementaldecoder("replace").decode(start)
    except UnicodeError:  # nothing can be replaced in utf-16 without its byte order mark
        return ""  # who reads it hears why
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def detect_all(sources: list[Source], *, tolerant: bool = False) -> list[str]:
    """The encoding of each source; `ascii` for one that would be the same in any. Raises DataError where two differ."""
    found: list[str] = []
    first: tuple[Source, str] | None = None
    for source in sources:
        encoding = detect(source, first[1] if first else None, tolerant=tolerant)
        if first and encoding not in ("ascii", first[1]):
            raise DataError(
                f"{source.name}: {encoding}, and {first[0].name} is {first[1]}; expected one encoding in all files, "
                "so convert one of them, or set data.encoding if both are in the same"
            )
        if first is None and encoding != "ascii":
            first = source, encoding
        found.append(encoding)
    return found


def detect(source: Source, neighbour: str | None = None, *, tolerant: bool = False) -> str:
    """What a text is in, by all of its bytes: its byte order mark, else UTF-8, else what charset-normalizer finds likeliest.

    `neighbour` is the encoding of the text beside it, and decides where there is too little to see.
    Raises DataError naming file and byte offset where it is nothing that is known here. `tolerant`: text like that is damaged UTF-8.
    """
    with source.opened() as raw:
        start = raw.read(SAMPLE)
    wide = _wide(start)
    if wide and _decodes(_pieces(source), wide):
        return wide
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = surplus = 0
    ascii = True
    for piece in _pieces(source):
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            surplus += error.start - len(error.object[: error.start].decode("utf-8"))
            where = offset - pending + error.start
            halved = (_HALF if surplus > 1 else _BOTH_HALVES).match(error.object, error.start) is not None
            break
        if ascii and not piece.isascii():
            ascii = False
        surplus += len(piece) - len(text)
        offset += len(piece)
    else:
        return "ascii" if ascii else "utf-8"
    sample = _telling_lines(source)
    fitting = [] if surplus >= DAMAGED or halved or b"\0" in start else [name for name in FOREIGN if _decodes(_pieces(source), name)]
    if neighbour in fitting and _high(sample) < FEW:
        return neighbour
    likeliest = _likeliest(sample, fitting)
    if likeliest is None and tolerant and b"\0" not in start:
        return "utf-8"
    if likeliest is None:
        raise DataError(_undecodable(source, "utf-8", where))
    return likeliest


def _wide(start: bytes) -> str | None:
    """UTF-16 or UTF-32, by its mark, or by the zeros that ASCII in UTF-16 has in every other place; what is no text has them in all."""
    for mark, name in MARKS:
        if start.startswith(mark):
            return name
    for parity, name in ((0, "utf-16-be"), (1, "utf-16-le")):
        zeros = start[parity::2].count(0)
        if zeros * 4 > len(start) > 1 and start[1 - parity :: 2].count(0) * 4 < zeros:
            return name
    return None


def _likeliest(sample: bytes, fitting: list[str]) -> str | None:
    """Of encodings in which these bytes are text, the one in which they look like it."""
    import charset_normalizer

    found: dict[str, tuple[float, float]] = {}  # how unlikely it looks
    for name in fitting:
        decoder = codecs.getincrementaldecoder(name)()
        decoder.decode(sample)
        whole = sample[: len(sample) - len(decoder.getstate()[0])]  # without a character that is cut at the end
        match = charset_normalizer.from_bytes(
            whole, cp_isolation=[name], threshold=MESS, preemptive_behaviour=False, enable_fallback=False
        ).best()
        if match is not None:
            found[name] = match.chaos, -match.coherence
        if name == "shift_jis":
            characters = [c for c in whole.decode(name) if not c.isascii()]
            hiragana = sum("\u3041" <= c <= "\u3096" for c in characters)
            half_width = sum("\uff61" <= c <= "\uff9f" for c in characters)
            if hiragana > KANA_SHARE * len(characters):
                return name
            if half_width > KANA_SHARE * len(characters) and len(fitting) > 1:
                found.pop(name, None)
    if "cp1252" in found and found["cp1252"][0] == min(found.values())[0] and _high(sample) < LATIN_SHARE * len(sample):
        return "cp1252"  # a few letters with accents are a few Chinese characters too
    return min(found, key=lambda name: found[name], default=None)


def _high(sample: bytes) -> int:
    """How many bytes are outside ASCII."""
    return len(sample.translate(None, bytes(range(128))))


def _telling_lines(source: Source) -> bytes:
    """Lines that hold more than ASCII, as many as there are to look at."""
    found: list[bytes] = []
    size, rest = 0, b""
    for piece in _pieces(source):
        *lines, rest = (rest + piece).split(b"\n") if piece else (rest, b"")
        for line in lines if len(rest) < SAMPLE else [*lines, rest]:
            if not line.isascii():
                found.append(line[:SAMPLE])
                size += len(found[-1])
            if size >= SAMPLE:
                return b"\n".join(found)
    return b"\n".join(found)


def _pieces(source: Source) -> Iterator[bytes]:
    """The bytes to the end, which is an empty piece."""
    with source.opened() as raw:
        while piece := raw.read(PIECE):
            yield piece
        yield b""


def _decodes(pieces: Iterable[bytes], encoding: str) -> bool:
    """Whether the bytes are text in that encoding, and whole where an empty piece ends them."""
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for piece in pieces:
            decoder.decode(piece, final=not piece)
    except UnicodeError:
        return False
    return True


def _undecodable(source: Source, encoding: str, offset: int) -> str:
    with source.opened() as raw:
        start = raw.read(1 << 12)
    wide = _wide(start)
    if wide or b"\0" in start:
        candidates = [wide] if wide else []
    else:
        candidates = ["utf-8", *FOREIGN]
    own = codecs.lookup(encoding).name
    fitting = [name for name in candidates if codecs.lookup(name).name != own and _fits(source, name, offset + (1 << 16))]
    none = "is it text at all? mend it there, or leave the file out"
    hint = f"its bytes would fit {' or '.join(fitting)}: set data.encoding" if fitting else none
    return f"{source.name}: not {encoding} at byte {offset}{' of what is packed in it' if source.is_packed else ''}; {hint}"


def _fits(source: Source, encoding: str, size: int) -> bool:
    def pieces() -> Iterator[bytes]:
        left = size
        with source.opened() as raw:
            while left > 0 and (piece := raw.read(min(left, PIECE))):
                left -= len(piece)
                yield piece

    return _decodes(pieces(), encoding)
