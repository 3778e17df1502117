"""How a person wants characters chosen: the options of sampling, checked. Without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from charrnn.errors import UserError

MOST = 10**9  # characters that an option can speak of: more has no text


@dataclass(frozen=True)
class SamplingOptions:
    """How an id is chosen. Raises UserError, naming the flag, for a value that cannot mean anything."""

    temperature: float = 0.8  # 0 is greedy
    top_k: int | None = None  # only the k most probable
    top_p: float | None = None  # only the most probable that hold this share together (Holtzman et al. 2020)
    min_p: float | None = None  # only those at least this share as probable as the best (Nguyen et al. 2024)
    repetition_penalty: float = 1.0  # on what stands in the last `repetition_window` characters (Keskar et al. 2019)
    repetition_window: int = 64
    no_repeat_ngram: int = 0  # no run of so many characters twice in a document; 0 is off

    def __post_init__(self) -> None:
        k, p, least, penalty = self.top_k, self.top_p, self.min_p, self.repetition_penalty
        all_stay = "leave the flag out to keep all characters"
        expect(0 <= self.temperature < math.inf, "--temperature", self.temperature, "a number from 0 up; 0 is greedy")
        expect(k is None or 1 <= k <= MOST, "--top-k", k, f"at least 1, at most {MOST:,}; {all_stay}")
        expect(p is None or 0 < p <= 1, "--top-p", p, f"a share above 0 and at most 1; {all_stay}")
        expect(least is None or 0 <= least <= 1, "--min-p", least, f"a share from 0 to 1; {all_stay}")
        expect(
            1e-6 <= penalty <= 1e6, "--repetition-penalty", penalty, "a number from 0.000001 to 1,000,000; 1 changes nothing, 1.2 is usual"
        )
        window, run = self.repetition_window, self.no_repeat_ngram
        expect(1 <= window <= MOST, "--repetition-window", window, f"at least 1 character, at most {MOST:,}")
        expect(0 <= run <= MOST, "--no-repeat-ngram", run, f"a number of characters, at most {MOST:,}; 0 is off")


def expect(holds: bool, flag: str, value: object, expectation: str) -> None:
    if not holds:
        raise UserError(f"{flag} {value}: expected {expectation}")


def separator_of(documents: str | None, format: str) -> str:
    """What is written between two documents, so that the text reads as the corpus did."""
    return "\n" if "lines" in (documents, format) else "\n\n"
