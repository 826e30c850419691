"""Pictures below each other, for the evidence's documents."""

from PIL import Image, ImageDraw


def named_rows(rows: dict[str, Image.Image], label: int) -> Image.Image:
    """Rows of one height, from the top down, each with its name before it in `label` pixels."""
    height, width = next(iter(rows.values())).height, max(row.width for row in rows.values())
    grid = Image.new("RGB", (label + width, height * len(rows)), "white")
    for number, (name, row) in enumerate(rows.items()):
        ImageDraw.Draw(grid).text((4, number * height + height // 2), name, fill="black")
        grid.paste(row, (label, number * height))
    return grid
