"""Pictures told of side by side as each alone, and where a model looked, laid over what it saw."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from charrnn.captioning import GROUP, Caption, Describe, Described, Draws, alike
from charrnn.config import DecodingConfig, ImagesConfig, ModelConfig
from charrnn.data.vocabulary import Vocabulary
from charrnn.decoding import Hypothesis
from charrnn.errors import DataError, UserError
from charrnn.gallery import MAP, figure, page, shade
from charrnn.models.captioner import Captioner
from charrnn.options import SamplingOptions

VOCABULARY = Vocabulary(("unknown", "end", "blank"), "abc")
SIZE, REDUCTION = 24, 8
WAYS = ["first_step", "first_input", "attention"]


def captioner(**model: Any) -> Captioner:
    torch.manual_seed(0)
    sizes = {"embedding_size": 4, "hidden_size": 8, "cnn": {"width": 4, "stages": 2}, "decoder": {"attention_size": 4}}
    made = Captioner(ModelConfig.model_validate(sizes | model), None, len(VOCABULARY)).eval()
    head = (made.speller or made.teller).head  # type: ignore[union-attr]
    with torch.no_grad():
        head.weight.mul_(4)
    return made


def describe(model: Captioner, **more: Any) -> Describe:
    decoding = DecodingConfig(max_length=6, beam_width=more.pop("beam_width", 1))
    return Describe(model, VOCABULARY, ImagesConfig(size=SIZE), decoding, **more)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """More than are looked at together, one of them no picture."""
    paths = [tmp_path / f"{n:02}.png" for n in range(GROUP + 3)]
    for n, path in enumerate(paths):
        Image.fromarray(np.random.default_rng(n).integers(256, size=(30, 40, 3), dtype=np.uint8)).save(path)
    paths[4].write_text("no picture")
    return paths


SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam": {"beam_width": 4, "count": 3},
    "drawn": {"count": 3, "draws": Draws(SamplingOptions(temperature=1.5, top_p=0.9), 7)},
}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("image_as", WAYS)
def test_each_of_many_is_told_of_as_if_alone(pictures: list[Path], image_as: str, search: str) -> None:
    model, count = captioner(image_as=image_as), SEARCHES[search].get("count", 1)
    found = list(describe(model, **SEARCHES[search]).files(pictures))
    assert len(found) == len(pictures) and isinstance(found[4], DataError) and str(found[4]).startswith(f"{pictures[4]}: ")
    for path, one in zip(pictures, found):
        if isinstance(one, DataError):
            continue
        (alone,) = describe(model, **SEARCHES[search]).files([path])
        assert isinstance(alone, Described) and one.path == alone.path == path and one.content == alone.content
        assert [c.text for c in one.captions] == [c.text for c in alone.captions] and len(one.captions) == count
        for a, b in zip(one.captions, alone.captions):
            assert a.hypothesis.nats == pytest.approx(b.hypothesis.nats, abs=1e-4)
            torch.testing.assert_close(a.hypothesis.alignment, b.hypothesis.alignment, atol=1e-4, rtol=1e-4)
            assert a.hypothesis.alignment.shape == (len(a.text), 9 if image_as == "attention" else 0)
        assert one.seen is not None and one.seen.shape == (3, SIZE, SIZE) and one.thumbnail is None
        assert one.reduction == (REDUCTION if image_as == "attention" else 0)


def test_draws_are_as_likely_as_the_model_has_it(pictures: list[Path]) -> None:
    """The first character of many draws, against its odds; nothing that is never written is drawn, however likely."""
    model, count = captioner(), 4000
    assert model.teller is not None
    with torch.no_grad():
        model.teller.head.bias[[0, 2]] = 9.0
    draws = Draws(SamplingOptions(temperature=0.7), 3)
    (one,) = describe(model, count=count, draws=draws).files(pictures[:1])
    assert isinstance(one, Described) and one.seen is not None
    with torch.inference_mode():
        source = model.encode(torch.from_numpy(one.seen).unsqueeze(0).float() / 255)
        logits, _ = model.next(torch.tensor([1]), model.start(source), source)
    logits = logits.index_fill(1, torch.tensor([0, 2]), -torch.inf)
    odds, costs = (logits[0].double() / 0.7).softmax(-1), -logits[0].double().log_softmax(-1)
    for i, text in ((1, ""), *((VOCABULARY.id(c), c) for c in "abc")):
        of = [caption.hypothesis for caption in one.captions if caption.text[:1] == text]
        assert len(of) / count == pytest.approx(float(odds[i]), abs=4 * (0.25 / count) ** 0.5)
        assert all(hypothesis.nats[0] == pytest.approx(float(costs[i]), abs=1e-4) for hypothesis in of)  # of its own odds


def test_a_model_whose_numbers_are_not_finite_draws_nothing(pictures: list[Path]) -> None:
    model = captioner()
    assert model.teller is not None
    with torch.no_grad():
        model.teller.head.bias.fill_(torch.nan)
    with pytest.raises(UserError, match=r"^the model answers with numbers that are not finite; expected finite logits"):
        list(describe(model, draws=Draws(SamplingOptions(temperature=1.0), 1)).files(pictures[:1]))


def test_only_most_of_enough_pictures_are_alike() -> None:
    def told(same: int, others: int) -> dict[bytes, str]:
        return {bytes([n]): "a" if n < same else f"b{n}" for n in range(same + others)}

    assert alike(told(10, 0)) == ("a", 10) and alike(told(19, 1)) == ("a", 19)
    assert alike(told(9, 0)) is None and alike(told(9, 1)) is None and alike({}) is None


@pytest.mark.parametrize("place", range(9))
def test_where_a_model_looked_is_clear_and_all_else_is_dark(place: int) -> None:
    """The place in row y and column x of the grid is around the pixel (8 x, 8 y) of 24, for there its convolutions are centred."""
    weights = np.zeros(9, dtype=np.float32)
    weights[place] = 0.6
    opacity = np.asarray(Image.open(io.BytesIO(shade(weights, SIZE, REDUCTION))).convert("RGBA"))[..., 3].astype(int)  # (M, M)
    assert opacity.shape == (MAP, MAP)
    y, x = divmod(place, 3)
    for at_y, at_x in ((at_y, at_x) for at_y in range(3) for at_x in range(3)):
        around = opacity[8 * at_y, 8 * at_x] if MAP == SIZE else 0
        assert (around < 40) == ((at_y, at_x) == (y, x)) and (around > 180) == ((at_y, at_x) != (y, x))


def test_who_looks_everywhere_sees_all() -> None:
    opacity = np.asarray(Image.open(io.BytesIO(shade(np.full(4, 0.25, dtype=np.float32), 20, 16))).convert("RGBA"))[..., 3]
    assert opacity.max() == 0


def test_a_page_escapes_what_it_is_given() -> None:
    bad = '<b onload="x">&\u202e\x1b'
    hypothesis = Hypothesis([3], [0.5], -0.5, False, torch.zeros(1, 0))
    made = figure(Described(Path(bad), [Caption(bad, hypothesis)], 0.1, b"", None, 0, b"jpeg"))
    whole = page([made], bad, [DataError(bad)], attended=False)
    assert "<b " not in whole and "\u202e" not in whole and "\x1b" not in whole
    assert whole.count("&lt;b onload=&quot;x&quot;&gt;&amp;\\u202e\\x1b") == 6  # title, header, alt, caption, name, fault
    assert "\\x1b…</span>" in whole and "1 picture, told of by" in whole


def test_what_a_model_saw_stands_in_the_style_where_the_policy_lets_it_count(pictures: list[Path]) -> None:
    (one,) = describe(captioner(image_as="attention")).files(pictures[:1])
    assert isinstance(one, Described)
    told = one if one.captions[0].text else pytest.fail("the model wrote nothing")
    made = figure(told)
    name = made.style.split(" ")[0].removeprefix(".")
    assert f'class="maps {name}"' in made.html and "style=" not in made.html
    whole = page([made, made], "m", [], attended=True)
    assert whole.count(f".{name} img {{ background-image: url(data:image/jpeg;base64,") == 1
