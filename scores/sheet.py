"""Pictures in rows and columns with words around them, drawn by Pillow: what the nodes show."""

from collections.abc import Sequence
from textwrap import wrap
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

INK, SOFT, PAPER, BEST = "#1c1b19", "#6d6a63", "#faf9f6", "#0d7a5f"
MARGIN, GAP, CAPTION, NAMES = 20, 12, 26, 190  # pixels; NAMES: the width of the rows' names


class Cell(NamedTuple):
    """A picture and the words under it; the best ones stand out."""

    picture: Image.Image
    caption: str
    best: bool = False


def sheet(
    rows: Sequence[Sequence[Cell]], row_names: Sequence[str], column_names: Sequence[str], side: int
) -> Image.Image:
    """Rows of cells of side × side pixels. row_names, column_names: words beside and above, or empty."""
    left = MARGIN + (NAMES if row_names else 0)
    top = MARGIN + (CAPTION if column_names else 0)
    columns = max(len(row) for row in rows)
    size = (left + columns * (side + GAP) - GAP + MARGIN, top + len(rows) * (side + CAPTION + GAP) - GAP + MARGIN)
    canvas = Image.new("RGB", size, PAPER)
    draw, font, bold = ImageDraw.Draw(canvas), ImageFont.load_default(14), ImageFont.load_default(16)
    for c, name in enumerate(column_names):
        draw.text((left + c * (side + GAP), MARGIN - 2), fitted(name, side, bold), INK, bold)
    for r, (row, (y, _)) in enumerate(zip(rows, row_places(len(rows), side, top), strict=True)):
        if row_names:
            draw.multiline_text((MARGIN, y), "\n".join(wrap(row_names[r], 24)[: side // 18]), INK, font, spacing=4)
        for c, cell in enumerate(row):
            x = left + c * (side + GAP)
            canvas.paste(fit(cell.picture, side), (x, y))
            draw.text((x, y + side + 5), fitted(cell.caption, side, font), BEST if cell.best else SOFT, font)
    return canvas


def row_places(rows: int, side: int, top: int = MARGIN + CAPTION) -> list[tuple[int, int]]:
    """(upper, lower) edge of every row of a sheet, in pixels; `top` of the first, by default below the columns' names."""
    uppers = [top + r * (side + CAPTION + GAP) for r in range(rows)]
    return [(upper, upper + side + CAPTION) for upper in uppers]


def fit(picture: Image.Image, side: int) -> Image.Image:
    """The whole picture inside side × side on the paper's colour; small ones are enlarged without blur."""
    scale = side / max(picture.size)
    size = tuple(max(1, round(length * scale)) for length in picture.size)
    small = picture.convert("RGB").resize(size, Image.NEAREST if scale >= 2 else Image.BICUBIC)
    square = Image.new("RGB", (side, side), PAPER)
    square.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def fitted(text: str, width: int, font) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
