"""Which documents are left out, and how many by which rule."""

from __future__ import annotations

import hashlib
from array import array

from charrnn.config import FiltersConfig
from charrnn.data.forms import form_of, parse_form
from charrnn.errors import DataError, UserError


class Filters:
    """The rules of `data.filters`. `dropped` counts the documents that fell to each, `lines` the lines that were left out."""

    def __init__(self, config: FiltersConfig) -> None:
        self.config = config
        self.authors = _listed(config.author)
        self.marks = _listed(config.drop_lines_with)
        try:
            self.forms = {parse_form(name) for name in _listed(config.form)}
        except UserError as error:
            raise DataError(f"data.filters.form: {error}") from None
        self.dropped: dict[str, int] = {}
        self.lines = 0
        self._seen = Seen()

    @property
    def are_any(self) -> bool:
        return self.config != FiltersConfig()

    @property
    def need_documents(self) -> str | None:
        """A rule that means nothing where the text is one stream."""
        given = self.config.model_dump(exclude_defaults=True, exclude={"drop_lines_with"})
        return next(iter(given), None)

    def keeps_author(self, names: set[str]) -> bool:
        return not self.authors or self._or_drop(not names.isdisjoint(self.authors), "author")

    def keeps_form(self, body: str) -> bool:
        return not self.forms or self._or_drop(form_of(body) in self.forms, "form")

    def without_lines(self, text: str) -> str:
        """The text without the lines that hold a mark."""
        if not any(mark in text for mark in self.marks):
            return text
        lines = text.split("\n")
        kept = [line for line in lines if not any(mark in line for mark in self.marks)]
        self.lines += len(lines) - len(kept)
        return "\n".join(kept)

    def keeps_lines(self, text: str) -> bool:
        """Whether anything is left of a document that had some text."""
        return self._or_drop(bool(text.strip()), "drop_lines_with")

    def keeps(self, document: str) -> bool:
        """Whether a document stays, as the model would read it."""
        shortest, longest = self.config.min_length, self.config.max_length
        return (
            self._or_drop(shortest is None or len(document) >= shortest, "min_length")
            and self._or_drop(longest is None or len(document) <= longest, "max_length")
            and (not self.config.drop_duplicates or self._or_drop(self._seen.add(document), "drop_duplicates"))
        )

    def _or_drop(self, kept: bool, rule: str) -> bool:
        if not kept:
            self.dropped[rule] = self.dropped.get(rule, 0) + 1
        return kept


class Seen:
    """Texts met before, by 8 bytes of their hash: ten millions of them in 134 MB, and a chance of 1 in 300,000 that two are mixed up.

    A table with open addressing, for a set of Python's takes five times as much.
    """

    def __init__(self) -> None:
        self._table = array("Q", bytes(8 << 10))
        self._count = 0

    def add(self, text: str) -> bool:
        """Whether the text is new."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        found = self._put(self._table, int.from_bytes(digest, "little") or 1)  # 0 is an empty place
        if found:
            self._count += 1
            if self._count * 3 > len(self._table) * 2:
                self._grow()
        return found

    def _grow(self) -> None:
        larger = array("Q", [0]) * (2 * len(self._table))
        for value in self._table:
            if value:
                self._put(larger, value)
        self._table = larger

    @staticmethod
    def _put(table: array[int], value: int) -> bool:
        mask = len(table) - 1
        place = value & mask
        while table[place]:
            if table[place] == value:
                return False
            place = (place + 1) & mask
        table[place] = value
        return True


def _listed(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])
