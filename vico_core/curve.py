"""The loss of a run as a picture: every step, and the mean that shows where it goes (single steps are mostly noise)."""

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, MARGIN = 640, 320, 44
GREY, BLUE, BLACK = (205, 210, 218), (32, 96, 180), (40, 40, 40)


def smoothed(losses: list[float], share: float = 0.1) -> list[float]:
    """Mean of the steps around each one, over a tenth of the run."""
    reach = max(1, round(len(losses) * share / 2))
    windows = (losses[max(0, i - reach) : i + reach + 1] for i in range(len(losses)))
    return [sum(window) / len(window) for window in windows]


def loss_curve(losses: list[float]) -> Image.Image:
    """Steps to the right, loss upwards from 0."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default()
    top = max(losses) or 1.0
    right, low, high = WIDTH - MARGIN // 2, HEIGHT - MARGIN, MARGIN // 2

    def points(values: list[float]) -> list[tuple[float, float]]:
        wide = max(1, len(values) - 1)
        return [
            (MARGIN + i / wide * (right - MARGIN), low - value / top * (low - high)) for i, value in enumerate(values)
        ]

    if len(losses) > 1:
        draw.line(points(losses), fill=GREY, width=1)
        draw.line(points(smoothed(losses)), fill=BLUE, width=3)
    draw.line([(MARGIN, high), (MARGIN, low), (right, low)], fill=BLACK, width=1)
    draw.text((4, high - 6), f"{top:.3f}", font=font, fill=BLACK)
    draw.text((4, low - 6), "0", font=font, fill=BLACK)
    draw.text((right - 60, low + 8), f"{len(losses)} steps", font=font, fill=BLACK)
    told = f"loss, mean of the last tenth {smoothed(losses)[-1]:.4f}"
    draw.text((MARGIN + 8, low + 8), told, font=font, fill=BLACK)
    return picture
