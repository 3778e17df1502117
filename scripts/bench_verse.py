#!/usr/bin/env python3
"""Verse with all masks against text without: characters per second, and how many verses are what was asked for.

The model is one that you name, or one of random weights and a vocabulary of the size you say, which is as fast. Verses and plain
texts of the same length are sampled in turn, and medians compared. What a verse must be is checked here from the spelling of
pinyin alone, with nothing of charrnn's own. Prints one markdown table.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Sequence
from functools import cache

import torch
from pypinyin import Style, pinyin
from torch import nn

from charrnn.checkpoint import build_model, load_model
from charrnn.config import ModelConfig
from charrnn.data.forms import parse_form
from charrnn.data.vocabulary import Vocabulary
from charrnn.generation import generate
from charrnn.model_file import find_model
from charrnn.models.char_rnn import CharRNN
from charrnn.options import SamplingOptions
from charrnn.verse.build import Verse, build_verse
from charrnn.verse.options import VerseOptions

# By how the line ends, in the order asked: the first that a syllable ends with is its rhyme.
ENDINGS = {
    "唐": "ang",
    "庚": "eng|ing|ong",
    "寒": "an",
    "文": "en|in|un|vn",
    "豪": "ao",
    "开": "ai",
    "微": "ei|ui",
    "尤": "ou|iu",
    "皆": "ie|ye|ue|ve|ê",
    "支": "[zcsr]h?i",
    "齐": "[jqxy]u|v|i|er",
    "麻": "a",
    "波": "o|e",
    "姑": "u",
}
CLASSICAL = {  # 平 is 1, 仄 is 2, either is 0; a couplet and the one that must follow it
    5: ("02112", "11221", "01122", "02211"),
    7: ("0102112", "0211221", "0201122", "0102211"),
}


@cache
def reading(character: str) -> str:
    """The first with a tone, as zhang3; nothing where there is none."""
    return next((r for r in pinyin(character, style=Style.TONE3, heteronym=True)[0] if re.fullmatch(r"[a-zê]+[1-4]", r)), "")


def rhyme(character: str) -> str | None:
    return next((name for name, end in ENDINGS.items() if re.search(f"(?:{end})$", reading(character)[:-1])), None)


def mistakes(
    text: str, lines: int, characters: int, *, acrostic: str = "", at_end: bool = False, rhymes: bool = False, tones: bool = False
) -> list[str]:
    """What is wrong with a verse, an empty list for nothing."""
    found = []
    verse = [line for line in re.split(r"[，。\s]+", text) if line]
    if len(verse) != lines or any(len(line) != characters for line in verse):
        return [f"lines of {[len(line) for line in verse]} characters"]
    if re.search("[，。]", text):
        marks = "".join(re.findall("[，。]", text))
        if marks != ("，。" * lines)[: lines - 1] + "。":
            found.append(f"marks {marks}")
    place = -1 if at_end else 0
    if "".join(line[place] for line in verse[: len(acrostic)]) != acrostic:
        found.append("heads")
    ends = [line[-1] for line in verse[1::2]]
    if rhymes:
        names = {rhyme(end) for end in ends}
        if len(names) != 1 or None in names:
            found.append(f"rhymes {ends}")
        free = [end for end in ends if not (at_end and end in acrostic)]
        if len(set(free)) != len(free):
            found.append("a rhyme twice")
    if tones:
        heard = ["".join("1" if reading(c)[-1:] in "12" else "2" for c in line) for line in verse]
        if not any(_regulated(heard, first, follows) for first in (0, 2) for follows in (False, True)):
            found.append(f"tones {heard}")
        if rhymes and heard[0][-1] == "1" and rhyme(verse[0][-1]) != rhyme(ends[0]):
            found.append("a first line that is level and does not rhyme")
    return found


def _regulated(heard: Sequence[str], first: int, rhymes_first: bool) -> bool:
    kinds = CLASSICAL[len(heard[0])]
    order = [kinds[(first + i) % 4] for i in range(len(heard))]
    if rhymes_first:
        order[0] = kinds[3 - first] if first == 0 else kinds[1]
    return all(re.fullmatch(kind.replace("0", "."), line) for kind, line in zip(order, heard))


def sampled(model: nn.Module, vocabulary: Vocabulary, verse: Verse | None, length: int, count: int, seed: int) -> tuple[list[str], float]:
    """Texts, and characters per second of all of them."""
    started = time.perf_counter()
    steps = generate(
        model,
        vocabulary,
        [],
        length=length,
        options=SamplingOptions(),
        generator=torch.Generator().manual_seed(seed),
        num_samples=count,
        constraints=[verse.start.copy() for _ in range(count)] if verse else [],
    )
    texts = ["".join(pieces) for pieces in zip(*steps)]
    return texts, sum(map(len, texts)) / (time.perf_counter() - started)


def random_model(size: int, hidden: int) -> tuple[nn.Module, Vocabulary]:
    """A model of the commonest block of Chinese characters, untrained."""
    vocabulary = Vocabulary(
        ("unknown", "end"), "".join(sorted({"\n", "，", "。", *"我爱你们", *map(chr, range(0x4E00, 0x4E00 + size - 9))}))
    )
    torch.manual_seed(1)
    return CharRNN(ModelConfig(embedding_size=64, hidden_size=hidden), len(vocabulary)), vocabulary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a run directory or a .safetensors file; left out, random weights")
    parser.add_argument("--vocabulary", type=int, default=6000, help="of the random model")
    parser.add_argument("--hidden", type=int, default=512, help="units of the random model")
    parser.add_argument("--form", default="七绝")
    parser.add_argument("--acrostic", default="我爱你们", help="empty for none")
    parser.add_argument("--no-rhyme", action="store_true")
    parser.add_argument("--no-tone", action="store_true")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 100, 1000], help="verses decoded as one batch")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    if args.model:
        loaded = load_model(find_model(args.model))
        model, vocabulary = build_model(loaded), loaded.vocabulary
    else:
        model, vocabulary = random_model(args.vocabulary, args.hidden)
    form = parse_form(args.form)
    asked = VerseOptions(form=form, rhyme=not args.no_rhyme, tone=not args.no_tone, acrostic=args.acrostic)
    started = time.perf_counter()
    verse = build_verse(vocabulary, asked)
    prepared = time.perf_counter() - started
    sampled(model, vocabulary, verse, verse.length or 1, 1, 0)  # what is made once is made before the clock starts
    length = form.lines * (form.characters + 1)
    print("| verses in one batch | plain chars/s | verse chars/s | ratio of medians | ratios by round | as asked |")
    print("| --- | --- | --- | --- | --- | --- |")
    for count in args.counts:
        plain, masked, right, written = [], [], 0, 0
        for seed in range(args.rounds):
            plain.append(sampled(model, vocabulary, None, length, count, seed)[1])
            texts, rate = sampled(model, vocabulary, verse, verse.length or 1, count, seed)
            masked.append(rate)
            written += len(texts)
            right += sum(
                not mistakes(text, form.lines, form.characters, acrostic=args.acrostic, rhymes=asked.rhyme, tones=asked.tone)
                for text in texts
            )
        ratio = statistics.median(masked) / statistics.median(plain)
        by_round = ", ".join(f"{b / a:.2f}" for a, b in zip(plain, masked))
        rates = f"{statistics.median(plain):,.0f} | {statistics.median(masked):,.0f}"
        print(f"| {count:,} | {rates} | {ratio:.2f} | {by_round} | {right:,} of {written:,} |")
    print(f"Sounds, plans and masks of a vocabulary of {len(vocabulary):,}: {prepared:.2f} s, once.")


if __name__ == "__main__":
    main()
