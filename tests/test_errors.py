"""A message is one line that a terminal can only show."""

from __future__ import annotations

import pytest

from charrnn.errors import LONGEST, SAID, ConfigError, DataError, Faults, UserError, did_you_mean, short


@pytest.mark.parametrize(
    "message, expected",
    [
        ("a\nb\r\nc", "a b c"),
        ("\x1b[31mred\x9b0m\u202e\t", r"\x1b[31mred\x9b0m\u202e\t"),
        ("half \udc80", r"half \udc80"),
        ("春眠 é 😀", "春眠 é 😀"),
        ("x" * LONGEST, "x" * LONGEST),
        ("a" + "x" * LONGEST + "z", f"a{'x' * (LONGEST // 2 - 1)} … {'x' * (LONGEST // 2 - 1)}z"),
    ],
    ids=ascii,
)
def test_a_message_is_one_line_that_a_terminal_can_only_show(message: str, expected: str) -> None:
    assert str(UserError(message)) == expected


def test_a_value_in_a_message_is_short() -> None:
    assert short(10**400) == "a number of 1329 bits"
    assert len(short("x" * 10**6)) <= 80 and short("a\nb") == r"'a\nb'"


def test_errors_are_one_line() -> None:
    for kind in (UserError, ConfigError, DataError):
        assert str(kind("runs/a\nb\r\nc\u2028d: missing")) == "runs/a b c d: missing"


def test_of_many_faults_the_first_have_a_line_each_and_the_others_are_counted() -> None:
    faults = [DataError(f"line {n}") for n in range(2000)]
    assert Faults(faults[:1]).lines == ["line 0"] == [str(Faults(faults[:1]))] == UserError("line 0").lines
    assert Faults([*faults[:SAID], faults[0]]).lines == [f"line {n}" for n in range(SAID)]
    assert Faults(faults).lines == [*(f"line {n}" for n in range(SAID)), f"and {2000 - SAID:,} more that cannot be used"]


def test_did_you_mean() -> None:
    assert did_you_mean("Rnn_Tahn", ["lstm", "rnn_tanh"]) == "; did you mean 'rnn_tanh'?"
    assert did_you_mean("lstm", []) == did_you_mean("zzz", ["lstm"]) == ""
