"""The report as one picture: win rates with their intervals over a few rows of pictures. matplotlib draws it."""

import io
from pathlib import Path
from textwrap import fill

import numpy as np
from PIL import Image

from ..intake import BadFile, open_picture
from .comparison import Table
from .page import Contents, best_model, headline, lead_of, number, percent

INK, SOFT, LINE, PAPER = "#1c1b19", "#6d6a63", "#e3dfd6", "#faf9f6"
COLOURS = {"wins": "#0d7a5f", "loses": "#b3432b", "even": "#8b8578"}
WIDTH, DPI = 10.0, 120  # inches, dots an inch
ROWS, COLUMNS = 4, 6  # prompts and pictures beside one another, at most
ROW = 1.55  # inches from one prompt's pictures to the next


def summary_picture(contents: Contents) -> Image.Image:
    """Heading, win rates, and the prompts with the greatest win, a middle one, and the worst losses."""
    from matplotlib.figure import Figure

    table = contents.tables[0]
    shown = telling_prompts(table, contents)
    bars, grid = 0.36 * len(contents.duels) + 0.9 if contents.duels else 0.1, ROW * len(shown)
    height = 1.35 + bars + grid + 0.2
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor=PAPER)
    figure.text(0.05, 1 - 0.42 / height, contents.title, color=SOFT, fontsize=10)
    figure.text(0.05, 1 - 0.84 / height, headline(contents), color=INK, fontsize=20, weight="bold")
    if contents.duels:
        draw_wins(figure.add_axes((0.27, 1 - (1.3 + bars - 0.45) / height, 0.52, (bars - 0.6) / height)), contents)
    draw_pictures(figure, contents, table, shown, top=1.35 + bars, height=height)
    return rendered(figure)


def telling_prompts(table: Table, contents: Contents) -> list[int]:
    """The greatest win, the middle, and the two worst losses by the first scorer: numbers of prompts, no one twice."""
    leader = best_model(contents.duels) if contents.duels else contents.models[0]
    leads = [lead_of(table, leader, contents.baseline, i) for i in range(len(table.prompts))]
    order = [int(i) for i in np.argsort(leads)[::-1]]
    return list(dict.fromkeys([order[0], order[len(order) // 2], *order[-2:]]))[:ROWS]


def draw_wins(axes, contents: Contents) -> None:
    """A line and a dot for every duel, around 50%."""
    for y, duel in enumerate(contents.duels):
        colour = COLOURS[duel.verdict]
        axes.hlines(y, *(100 * end for end in duel.interval), color=colour, linewidth=5, alpha=0.35, clip_on=False)
        axes.plot(100 * duel.win_rate, y, "o", color=colour, markersize=9, clip_on=False)
        low, high = (100 * end for end in duel.interval)
        axes.text(104, y, percent(duel.win_rate), va="center", color=colour, fontsize=11, weight="bold")
        axes.text(114, y, f"{low:.0f}–{high:.0f}%", va="center", color=SOFT, fontsize=9)
    labels = [fill(f"{duel.model}  ·  {duel.scorer}", 38) for duel in contents.duels]
    axes.set_yticks(range(len(labels)), labels, fontsize=9.5, color=INK, linespacing=1.0)
    axes.set_xticks([0, 25, 50, 75, 100], ["0", "25", "50%", "75", "100"], fontsize=8.5, color=SOFT)
    axes.set(xlim=(0, 100), ylim=(len(labels) - 0.4, -0.6), facecolor="none")
    axes.axvline(50, color=SOFT, linewidth=1.2, zorder=0)
    axes.grid(axis="x", color=LINE, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(f"how often it wins against {contents.baseline}, with 95% intervals", fontsize=8.5, color=SOFT)


def draw_pictures(figure, contents: Contents, table: Table, shown: list[int], top: float, height: float) -> None:
    """Rows of prompts, columns of models and seeds, the score under each picture. top, height: inches."""
    models = table.models[:COLUMNS]
    places = [(model, s) for model in models for s in range(min(len(table.seeds[0]), COLUMNS // len(models)))]
    for row, i in enumerate(shown):
        y = top + ROW * row
        figure.text(0.05, 1 - (y + 0.28) / height, wrapped(table.prompts[i], 26), color=INK, fontsize=9.5, va="top")
        for column, (model, s) in enumerate(places):
            axes = figure.add_axes((0.27 + 0.118 * column, 1 - (y + 1.4) / height, 0.11, 1.12 / height))
            show_picture(axes, table.pictures[model][i][s])
            axes.set_xlabel(number(table.scores[model][i, s]), fontsize=8.5, color=SOFT, labelpad=3)
            if row == 0 and s == 0:
                axes.set_title(model, fontsize=9, color=SOFT, loc="left", pad=4)


def show_picture(axes, path: str) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    try:
        axes.imshow(np.asarray(open_picture(Path(path), path)), interpolation="antialiased")
    except BadFile:  # it was there when it was scored
        axes.text(0.5, 0.5, "gone", ha="center", va="center", color=SOFT, fontsize=8)


def wrapped(text: str, width: int) -> str:
    from textwrap import shorten, wrap

    return "\n".join(wrap(shorten(text, 5 * width, placeholder=" …"), width)).replace("$", r"\$")


def rendered(figure) -> Image.Image:
    packed = io.BytesIO()
    figure.savefig(packed, format="png")
    return Image.open(packed)
