#!/usr/bin/env python3
"""Pictures of one or two coloured shapes, each with the one caption that is right, in English and in Chinese.

"a red circle", or "a red circle left of a blue square": of two shapes the larger one is named first, so that the same picture is not as
well a blue square right of a red circle. Two shapes have different colours, and lie beside or above each other without a doubt. Position,
size, angle, shade and background differ from one picture to the next. A picture follows from the seed and its number alone.

Writes OUT/captions.tsv and OUT/captions-zh.tsv, the pictures in OUT/pictures, and OUT/val.txt, which names those to measure on. With the
defaults that is the corpus in data/sample/shapes. Needs charrnn[images].
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

FINER = 4  # shapes are drawn so many times larger, and made smaller again, for smooth edges
SHAPES = {"circle": "圆", "square": "方块", "triangle": "三角形", "star": "五角星", "cross": "十字"}
COLORS = {
    "red": ("红", (220, 40, 45)),
    "orange": ("橙", (245, 140, 30)),
    "yellow": ("黄", (240, 215, 45)),
    "green": ("绿", (45, 160, 65)),
    "blue": ("蓝", (45, 85, 215)),
    "purple": ("紫", (150, 60, 185)),
}
RELATIONS = {"left of": "左边", "right of": "右边", "above": "上面", "below": "下面"}
# Shares of the picture's side. The radius is that of the circle: all shapes of one radius have its area.
LARGE, SMALL = (0.14, 0.16), (0.085, 0.1)
NEAR, FAR = (0.25, 0.29), (0.71, 0.75)  # where the two lie on the axis of their relation …
ACROSS, SLIP = (0.32, 0.68), 0.03  # … and on the other one, both at the same place but for a slip
ALONE = 0.25  # of the pictures show one shape


class Shape(NamedTuple):
    kind: str
    color: str
    x: float
    y: float
    radius: float

    def english(self) -> str:
        return f"{'an' if self.color == 'orange' else 'a'} {self.color} {self.kind}"

    def chinese(self) -> str:
        return f"一个{COLORS[self.color][0]}色的{SHAPES[self.kind]}"


class Scene(NamedTuple):
    shapes: tuple[Shape, ...]  # the larger first
    relation: str | None  # of the first to the second

    def english(self) -> str:
        return f" {self.relation} ".join(shape.english() for shape in self.shapes)

    def chinese(self) -> str:
        first, *second = (shape.chinese() for shape in self.shapes)
        return f"{first}在{second[0]}{RELATIONS[self.relation]}" if second and self.relation else first


def scene(random: np.random.Generator) -> Scene:
    if random.random() < ALONE:
        x, y = random.uniform(0.3, 0.7, 2)
        return Scene((_shape(random, str(random.choice(list(COLORS))), x, y, (SMALL[0], LARGE[1])),), None)
    relation = str(random.choice(list(RELATIONS)))
    first_color, second_color = (str(color) for color in random.choice(list(COLORS), 2, replace=False))
    places = (NEAR, FAR) if relation in ("left of", "above") else (FAR, NEAR)
    along = [random.uniform(*place) for place in places]
    across = random.uniform(*ACROSS) + random.uniform(-SLIP, SLIP, 2)
    (x1, x2), (y1, y2) = (along, across) if relation in ("left of", "right of") else (across, along)
    return Scene((_shape(random, first_color, x1, y1, LARGE), _shape(random, second_color, x2, y2, SMALL)), relation)


def _shape(random: np.random.Generator, color: str, x: float, y: float, radii: tuple[float, float]) -> Shape:
    return Shape(str(random.choice(list(SHAPES))), color, float(x), float(y), float(random.uniform(*radii)))


def outline(kind: str, radius: float) -> list[tuple[float, float]]:
    """The corners of a shape around (0, 0), whose area is that of a circle of this radius."""
    if kind == "square":
        half = radius * math.sqrt(math.pi) / 2
        return [(-half, -half), (half, -half), (half, half), (-half, half)]
    if kind == "triangle":
        reach = radius * math.sqrt(4 * math.pi / (3 * math.sqrt(3)))
        return [_polar(reach, third / 3) for third in range(3)]
    if kind == "star":
        reach = radius * math.sqrt(math.pi / (10 * 0.45 * math.sin(math.pi / 5) / 2))  # every second corner at 0.45 of it
        return [_polar(reach * (0.45 if tenth % 2 else 1), tenth / 10) for tenth in range(10)]
    thin = radius * math.sqrt(math.pi / 20)  # half of an arm's width; a cross is five squares
    arm = [(thin, thin), (thin, 3 * thin), (-thin, 3 * thin)]
    return [turn(corner, quarter / 4) for quarter in range(4) for corner in arm]


def _polar(reach: float, turns: float) -> tuple[float, float]:
    """Clockwise from the top."""
    return reach * math.sin(2 * math.pi * turns), -reach * math.cos(2 * math.pi * turns)


def turn(point: tuple[float, float], turns: float) -> tuple[float, float]:
    cos, sin = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    return point[0] * cos - point[1] * sin, point[0] * sin + point[1] * cos


def drawn(seen: Scene, size: int, random: np.random.Generator) -> Image.Image:
    wide = FINER * size
    shade = int(random.integers(215, 250))
    picture = Image.new("RGB", (wide, wide), (shade, shade, shade))
    brush = ImageDraw.Draw(picture)
    for shape in seen.shapes:
        color = tuple(int(c) for c in np.clip(np.array(COLORS[shape.color][1]) + random.integers(-8, 9, 3), 0, 255))
        x, y, radius = shape.x * wide, shape.y * wide, shape.radius * wide
        tilt = random.uniform(-0.03, 0.03)  # turns: up to 11 degrees to either side
        if shape.kind == "circle":
            brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
        else:
            corners = (turn(corner, tilt) for corner in outline(shape.kind, radius))
            brush.polygon([(x + dx, y + dy) for dx, dy in corners], fill=color)
    return picture.resize((size, size), Image.Resampling.BOX)


def example(number: int, seed: int, size: int) -> tuple[Scene, Image.Image]:
    random = np.random.Generator(np.random.PCG64([seed, number]))
    seen = scene(random)
    return seen, drawn(seen, size, random)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=64, help="pictures in all (default: 64)")
    parser.add_argument("--val-count", type=int, default=16, help="of them, the last, to measure on (default: 16)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", type=int, default=64, help="pixels of a side (default: 64)")
    parser.add_argument("--language", choices=("en", "zh", "both"), default="both")
    parser.add_argument("--out", type=Path, required=True, help="a folder; made where there is none")
    args = parser.parse_args()
    if not 0 <= args.val_count < args.count or args.seed < 0 or not 16 <= args.size <= 1024:
        fact = "expected 0 <= --val-count < --count, --seed of at least 0, and --size of 16 to 1024"
        parser.exit(2, f"{parser.prog}: error: {fact}\n")
    english, chinese, names = ["image\tcaption\n"], ["image\tcaption\n"], []
    try:
        (args.out / "pictures").mkdir(parents=True, exist_ok=True)
        for number in range(args.count):
            seen, picture = example(number, args.seed, args.size)
            name = f"pictures/{number:04d}.png"
            picture.save(args.out / name, optimize=True)
            english.append(f"{name}\t{seen.english()}\n")
            chinese.append(f"{name}\t{seen.chinese()}\n")
            names.append(f"{name}\n")
        for file, lines in (("captions.tsv", english), ("captions-zh.tsv", chinese), ("val.txt", names[args.count - args.val_count :])):
            if file == "val.txt" or args.language in ("both", "zh" if "zh" in file else "en"):
                (args.out / file).write_text("".join(lines), encoding="utf-8", newline="\n")
    except OSError as error:
        parser.exit(2, f"{parser.prog}: error: {error.filename}: {error.strerror}; name another folder with --out\n")


if __name__ == "__main__":
    main()
