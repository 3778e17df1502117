"""Where a text's randomness comes from: one seed, and from it one for each text. Without torch and without numpy."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_WORD = 0xFFFFFFFF


def base_seed(generator: torch.Generator | int) -> int:
    """A number below 2⁶² that a generator draws, or that torch's generator on the CPU draws first from this seed.

    That one is the Mersenne Twister (Matsumoto & Nishimura 1998), begun with the low 32 bits of the seed; so is Python's.
    """
    if not isinstance(generator, int):
        import torch

        return int(torch.randint(2**62, (), generator=generator, device=generator.device))
    state = [generator & _WORD]
    for i in range(1, 624):
        state.append((1812433253 * (state[-1] ^ (state[-1] >> 30)) + i) & _WORD)
    twister = random.Random()
    twister.setstate((3, (*state, 624), None))
    first, second = twister.getrandbits(32), twister.getrandbits(32)
    return (first << 32 | second) % 2**62


def seed_of(base: int, i: int) -> int:
    """64 bits for text i, unrelated to those for any other: numpy's `SeedSequence((base, i))` and its first word.

    Its algorithm (O'Neill 2015, "Developing a seed_seq alternative") is fixed by numpy's promise that streams stay; importing numpy for
    it would take longer than all else.
    """
    entropy = [*_words(base), *_words(i)]
    hashing = 0x43B0D7E5

    def hashed(value: int) -> int:
        nonlocal hashing
        value ^= hashing
        hashing = hashing * 0x931E8875 & _WORD
        value = value * hashing & _WORD
        return value ^ value >> 16

    def mixed(x: int, y: int) -> int:
        result = (0xCA01F9DD * x - 0x4973F715 * y) & _WORD
        return result ^ result >> 16

    pool = [hashed(entropy[place] if place < len(entropy) else 0) for place in range(4)]
    for source in range(4):
        for to in range(4):
            if source != to:
                pool[to] = mixed(pool[to], hashed(pool[source]))
    for word in entropy[4:]:
        for to in range(4):
            pool[to] = mixed(pool[to], hashed(word))
    words, hashing = [], 0x8B51F9DD
    for word in pool[:2]:
        word ^= hashing
        hashing = hashing * 0x58F38DED & _WORD
        word = word * hashing & _WORD
        words.append(word ^ word >> 16)
    return words[0] | words[1] << 32


def _words(number: int) -> list[int]:
    """The 32-bit words of a number, the lowest first; one for 0."""
    words = [number & _WORD]
    while number := number >> 32:
        words.append(number & _WORD)
    return words
