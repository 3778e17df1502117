"""What one request may ask for, and how much at once: whatever comes, memory and time are bounded."""

from __future__ import annotations

JSON_BYTES = 256 << 10  # of a body that is JSON
MEDIA_BYTES = 16 << 20  # of a picture or a recording
BODY_SECONDS = 20.0  # until a body has to be there
LONGEST_URL = 2000  # characters behind the address

PRIME = 10_000  # characters
LENGTH = 10_000  # new characters
TEXT = 20_000  # characters to be scored, classified or tagged
FILL_TEXT = 2_000  # characters of a text with blanks,
BLANKS = 16  # and blanks of it
LINES, LINE, ACROSTIC = 200, 500, 100  # of a verse, of a line, of an acrostic
PIXELS = 40_000_000  # of a picture
RECORDING_SECONDS = 120.0

GENERATION_SECONDS = 300.0  # that a text may take, however slowly it is read
PATIENCE = 10.0  # seconds beyond that in which what was written may still be fetched
GENERATIONS = 32  # texts that are written at once,
DECODERS = 1 << 30  # bytes of weights that they have copies of, so fewer of a large model
ANSWERS = 8  # other answers that are made or wait at once
CONNECTIONS = 256  # to the server, at once

MOMENT = 0.02  # seconds that a text is written on before another has its turn
EVENT = 256  # characters of an event at most
EVENTS = 20  # a second, of a text that is paced
