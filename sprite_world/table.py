"""A small picture of what was measured: every picture, its caption, and what it was seen to show."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .measure import Measured
from .pictures import PIXELS, show
from .scenes import ART

TILE = ART * PIXELS
WIDTH, MARGIN, LINE = 3 * TILE, 10, 17
PAPER, INK, RIGHT, WRONG = (250, 249, 246), (40, 38, 48), (36, 128, 64), (196, 48, 48)


def _lines(one: Measured) -> list[tuple[str, tuple[int, int, int]]]:
    """The text beside a picture with its colours: green where the caption is followed, red where not."""
    lines = [(one.caption, INK)]
    for name, right in one.follows.items():
        lines.append((f"{name.replace('_word', '')}: {one.shown[name]}", RIGHT if right else WRONG))
    if one.similarity is not None:
        lines.append((f"identity: {one.similarity:.2f}", INK))
    lines.append((f"taste: {one.shown['taste']:.2f}", INK))
    return lines


def _row(art: np.ndarray, one: Measured) -> Image.Image:
    row = Image.new("RGB", (TILE + WIDTH, TILE), PAPER)
    row.paste(Image.fromarray(show(art)), (0, 0))
    pen, font = ImageDraw.Draw(row), ImageFont.load_default(size=13)
    for i, (text, colour) in enumerate(_lines(one)):
        pen.text((TILE + MARGIN, 2 + i * LINE), text, fill=colour, font=font)
    return row


def table(art: np.ndarray, measured: list[Measured], most: int = 12) -> np.ndarray:
    """The first `most` pictures of art [B, 32, 32, 3] with their measures: [rows * 128, 512, 3] uint8."""
    rows = [np.asarray(_row(picture, one)) for picture, one in zip(art[:most], measured[:most], strict=True)]
    return np.concatenate(rows, 0)


def summary(measured: list[Measured], shares: dict[str, float]) -> str:
    """The figures over all pictures, one a line."""
    lines = [f"{len(measured)} pictures"]
    lines += [f"{name.replace('_word', '')} as the caption says: {100 * share:.1f}%" for name, share in shares.items()]
    similarities = [one.similarity for one in measured if one.similarity is not None]
    if similarities:
        lines.append(f"identity similarity: {np.mean(similarities):.3f}")
    lines.append(f"taste: {np.mean([one.shown['taste'] for one in measured]):.3f}")
    return "\n".join(lines)
