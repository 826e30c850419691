"""The report as one HTML page that needs nothing beside it: fragments of HTML, each from the numbers it shows."""

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..intake import BadFile, open_picture
from .comparison import Duel, Mean, Table
from .statistics import Interval, mean_interval

HERE = Path(__file__).parent
THUMBNAIL, MANY, SMALL = 256, 400, 192  # pixels; with more than MANY pictures on the page they are SMALL
TONE = {"wins": "better", "loses": "worse", "even": "even"}


class Contents(NamedTuple):
    """What a page shows. published: ViCo's table, {method: numbers by scorer}, or empty."""

    title: str
    baseline: str
    models: list[str]
    tables: list[Table]
    duels: list[Duel]
    means: list[Mean]
    rounds: list[str]
    published: dict[str, dict[str, float]]
    about: dict
    aggregation: str


def page(contents: Contents) -> str:
    """The whole page."""
    body = [
        header(contents),
        wins(contents),
        curves(contents),
        numbers(contents),
        published_table(contents.published),
        picture_rows(contents),
        method(contents),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(contents.title)}</title><style>{asset('page.css')}</style></head>\n<body><main>"
        + "\n".join(filter(None, body))
        + f"</main><script>{asset('page.js')}</script></body></html>\n"
    )


def asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def section(key: str, heading: str, note: str, inner: str) -> str:
    note = f'<p class="note">{note}</p>' if note else ""
    return f'<section id="{key}"><h2>{heading}</h2>{note}{inner}</section>'


def percent(value: float) -> str:
    return f"{100 * value:.0f}%"


def number(value: float) -> str:
    """Three significant digits, four where scores lie close together; a true minus sign."""
    if not np.isfinite(value):
        return "–"
    digits = 3 if abs(value) < 1 else 2
    return f"{value:.{digits}f}".replace("-", "\u2212")


def signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value)


def headline(contents: Contents) -> str:
    """What the duels say about the best of the models, in words."""
    if not contents.duels:
        return f"Scores of {contents.models[0]}"
    leader = best_model(contents.duels)
    verdicts = [duel.verdict for duel in contents.duels if duel.model == leader]
    wins, losses = verdicts.count("wins"), verdicts.count("loses")
    if wins and losses:
        return f"{leader} against {contents.baseline}: the scorers disagree"
    if not wins and not losses:
        return f"{leader} and {contents.baseline} cannot be told apart"
    share = "" if wins + losses == len(verdicts) else f" by {wins + losses} of {len(verdicts)} scorers"
    return f"{leader} is {'better' if wins else 'worse'} than {contents.baseline}{share}"


def best_model(duels: Sequence[Duel]) -> str:
    """The model with the highest win rate by the first scorer."""
    first = [duel for duel in duels if duel.by == duels[0].by]
    return max(first, key=lambda duel: duel.win_rate).model


def header(contents: Contents) -> str:
    table = contents.tables[0]
    rows, seeds = table.scores[table.models[0]].shape
    prompts = len(set(table.prompts))
    facts = {
        "prompts": prompts,
        **({"pictures a prompt": seeds} if rows == prompts else {"pairs": rows}),
        "models": len(contents.models),
        "scorers": len(contents.tables),
    }
    cells = "".join(f"<div><dt>{name}</dt><dd>{value:,}</dd></div>" for name, value in facts.items())
    heading = escape(contents.title)
    return (
        f'<header><p class="eyebrow">{heading}</p><h1>{escape(headline(contents))}</h1>'
        f'<p class="lead">{lead(contents)}</p><dl class="facts">{cells}</dl></header>'
    )


def lead(contents: Contents) -> str:
    """A sentence for every scorer on the best model."""
    if not contents.duels:
        return "One model alone: give a second one to compare it with."
    leader = best_model(contents.duels)
    said = []
    for duel in (duel for duel in contents.duels if duel.model == leader):
        low, high = (f"{100 * end:.0f}" for end in duel.interval)
        unit = "prompts" if duel.pairs == duel.prompts else "pairs"
        what, interval = (f" of the {unit}", "95% interval ") if not said else ("", "")
        said.append(f"{percent(duel.win_rate)}{what} by {escape(duel.scorer)} ({interval}{low}–{high}%)")
    return f"It wins {', '.join(said)}."


def wins(contents: Contents) -> str:
    """Win rates as points with their intervals around the 50% line."""
    if not contents.duels:
        return ""
    rows = []
    for by, scorer in dict.fromkeys((duel.by, duel.scorer) for duel in contents.duels):
        rows.append(f'<h3 class="axis"><span>{escape(scorer)}</span>{axis()}<span></span><span>difference</span></h3>')
        rows += [win_row(duel) for duel in contents.duels if duel.by == by]
    note = (
        f"How often a model's picture scores higher than that of <b>{escape(contents.baseline)}</b> for the same prompt and "
        f"seeds, ties counting half. Lines are 95% intervals over prompts. A prompt's number is {contents.aggregation}."
    )
    return section("wins", "Win rate", note, f'<div class="wins">{"".join(rows)}</div>')


def axis() -> str:
    marks = "".join(f'<i style="left:{mark}%">{mark}</i>' for mark in (0, 25, 50, 75, 100))
    return f'<span class="scale" aria-hidden="true">{marks}</span>'


def win_row(duel: Duel) -> str:
    low, high, at = (100 * value for value in (*duel.interval, duel.win_rate))
    ends = duel.difference_interval
    spread = f"{signed(ends.low)} to {signed(ends.high)}" if np.isfinite(ends.low) else "one prompt alone"
    return (
        f'<div class="win {TONE[duel.verdict]}" title="{escape(duel.method)}"><span class="who">{escape(duel.model)}</span>'
        f'<span class="track"><b style="left:{low:.2f}%;width:{high - low:.2f}%"></b><i style="left:{at:.2f}%"></i></span>'
        f'<span class="rate">{percent(duel.win_rate)}<small>{low:.0f}–{high:.0f}</small></span>'
        f'<span class="difference">{signed(duel.difference)}<small>{spread}</small></span></div>'
    )


def numbers(contents: Contents) -> str:
    """Every model's mean by every scorer. Scorers stand side by side and are never averaged."""
    found = {(mean.by, mean.model): mean for mean in contents.means}
    head = "".join(f"<th>{escape(table.scorer)}</th>" for table in contents.tables)
    lines = []
    for model in contents.models:
        cells = "".join(mean_cell(found.get((table.by, model))) for table in contents.tables)
        lines.append(f"<tr><th>{escape(model)}</th>{cells}</tr>")
    inner = f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    note = "Means over prompts with 95% intervals. The scales differ from scorer to scorer, so there is no average of them."
    return section("numbers", "Means", note, inner)


def mean_cell(mean: Mean | None) -> str:
    if mean is None:
        return "<td>–</td>"
    return f"<td>{number(mean.mean)}<small>{number(mean.interval.low)} to {number(mean.interval.high)}</small></td>"


def published_table(published: dict[str, dict[str, float]]) -> str:
    """ViCo's table: the papers' rows, then the run's."""
    if not published:
        return ""
    scorers = list(dict.fromkeys(scorer for row in published.values() for scorer in row))
    head = "".join(f"<th>{escape(scorer)}</th>" for scorer in scorers)
    lines = [
        f"<tr><th>{escape(name)}</th>" + "".join(f"<td>{number(row.get(s, np.nan))}</td>" for s in scorers) + "</tr>"
        for name, row in published.items()
    ]
    inner = f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return section("vico", "ViCo's evaluation", "Means over samples, then prompts, then concepts.", inner)


def curves(contents: Contents) -> str:
    """A small chart for every scorer that saw a round: the mean with its interval over the rounds of training."""
    charts = []
    for table in contents.tables:
        present = [model for model in contents.rounds if model in table.models]
        values = [table.scores[model].mean(axis=1) for model in present]  # [P] each
        ends = [mean_interval(v, prompts=table.prompts) for v in values]
        if present:
            charts.append(curve(table.scorer, present, [v.mean() for v in values], ends))
    if len(contents.rounds) < 2 or not charts:
        return ""
    note = "The mean score over prompts, round by round, with its 95% interval."
    return section("rounds", "Round by round", note, f'<div class="curves">{"".join(charts)}</div>')


def curve(name: str, labels: Sequence[str], means: Sequence[float], ends: Sequence[Interval]) -> str:
    """One chart as SVG, 340 × 200 units."""
    lows = [end.low if np.isfinite(end.low) else mean for end, mean in zip(ends, means, strict=True)]
    highs = [end.high if np.isfinite(end.high) else mean for end, mean in zip(ends, means, strict=True)]
    bottom, top = min(lows), max(highs)
    span = (top - bottom) or 1.0

    def at(i: int, value: float) -> str:
        return f"{50 + 270 * i / max(1, len(labels) - 1):.1f},{160 - 130 * (value - bottom) / span:.1f}"

    band = " ".join([at(i, v) for i, v in enumerate(highs)] + [at(i, lows[i]) for i in reversed(range(len(lows)))])
    line = " ".join(at(i, v) for i, v in enumerate(means))
    dots = "".join('<circle r="3.5" cx="{}" cy="{}"/>'.format(*at(i, v).split(",")) for i, v in enumerate(means))
    texts = "".join(
        f'<text x="{at(i, 0).split(",")[0]}" y="186">{escape(label)}</text>' for i, label in enumerate(labels)
    )
    sides = f'<text class="side" x="42" y="34">{number(top)}</text><text class="side" x="42" y="164">{number(bottom)}</text>'
    shapes = (
        f'<path d="M50 160H320M50 30H320"/><polygon points="{band}"/><polyline points="{line}"/>{dots}{texts}{sides}'
    )
    return (
        f'<figure><figcaption>{escape(name)}</figcaption><svg viewBox="0 0 340 200" role="img">{shapes}</svg></figure>'
    )


def picture_rows(contents: Contents) -> str:
    """Every prompt's pictures side by side, a column a model, the scores under them."""
    table = max(contents.tables, key=lambda table: len(table.prompts))
    others = [other for other in contents.tables if other.prompts == table.prompts and other.seeds == table.seeds]
    count = sum(len(row) for rows in table.pictures.values() for row in rows)
    size = SMALL if count > MANY else THUMBNAIL
    rows = [picture_row(contents, others, i, size) for i in range(len(table.prompts))]
    narrow = " pairs" if len(table.models) * len(table.seeds[0]) <= 3 else ""
    inner = toolbar(others, bool(contents.duels)) + f'<div class="rows{narrow}" id="rows">{"".join(rows)}</div>'
    return section("pictures", "Pictures", "", inner)


def toolbar(made: Sequence[Table], compared: bool) -> str:
    names = "".join(f'<option value="{i}">{escape(table.scorer)}</option>' for i, table in enumerate(made))
    orders = {"order": "prompts in order"}
    if compared:
        orders = {"worst": "worst losses first", "best": "greatest wins first", **orders}
    sorts = "".join(f'<option value="{key}">{name}</option>' for key, name in orders.items())
    return (
        f'<div class="toolbar"><label>Score <select id="scorer">{names}</select></label>'
        f'<label>Sort <select id="sort">{sorts}</select></label>'
        '<label class="grow">Find <input id="find" type="search" placeholder="words of a prompt"></label>'
        '<output id="count"></output></div>'
    )


def picture_row(contents: Contents, made: Sequence[Table], i: int, size: int) -> str:
    """One prompt: its words, the leader's lead by every scorer, and a column of pictures for every model."""
    table = made[0]
    leader = best_model(contents.duels) if contents.duels else contents.models[0]
    leads = [lead_of(other, leader, contents.baseline, i) for other in made]
    columns = "".join(column(made, model, i, size) for model in table.models)
    across = pictures_across(len(table.models), len(table.seeds[i]))
    return (
        f'<article data-i="{i}" data-lead="{" ".join(f"{value:.6g}" for value in leads)}">'
        f'<h3>{escape(table.prompts[i])}</h3><p class="lead-of"></p>'
        f'<div class="columns" style="--models:{len(table.models)};--across:{across}">{columns}</div></article>'
    )


def pictures_across(models: int, seeds: int) -> int:
    """How many of a model's pictures stand side by side: a row where there is room, else as near to a square as can be."""
    return seeds if models * seeds <= 8 else math.ceil(math.sqrt(seeds))


def lead_of(table: Table, leader: str, baseline: str, i: int) -> float:
    """By how much the leader's mean lies above the baseline's at one prompt."""
    if leader not in table.scores or baseline not in table.scores:
        return 0.0
    return float(table.scores[leader][i].mean() - table.scores[baseline][i].mean())


def column(made: Sequence[Table], model: str, i: int, size: int) -> str:
    pictures = made[0].pictures[model][i]
    figures = []
    for s, path in enumerate(pictures):
        values = [table.scores[model][i, s] if model in table.scores else np.nan for table in made]
        shown = "|".join(number(value) for value in values)
        alt = f"{model}, seed {made[0].seeds[i][s]}"
        picture = thumbnail(path, size, alt)
        figures.append(f'<figure>{picture}<figcaption data-s="{shown}">{number(values[0])}</figcaption></figure>')
    return f'<div class="column"><h4>{escape(model)}</h4><div>{"".join(figures)}</div></div>'


def thumbnail(path: str, size: int, alt: str) -> str:
    """The picture inside the page as WebP; a sentence where the file has gone since it was scored."""
    try:
        picture = open_picture(Path(path), path)
    except BadFile:
        return f'<span class="gone">{escape(Path(path).name)} is no longer there</span>'
    picture.thumbnail((size, size))
    packed = io.BytesIO()
    picture.save(packed, "WEBP", quality=80, method=2)
    data = base64.b64encode(packed.getvalue()).decode()
    width, height = picture.size
    return (
        f'<img alt="{escape(alt)}" title="{escape(alt)}" width="{width}" height="{height}" loading="lazy" '
        f'decoding="async" src="data:image/webp;base64,{data}">'
    )


def method(contents: Contents) -> str:
    """How the numbers came about: scorers with their files' hashes, versions, what was left out."""
    records = contents.about.get("scorers", {})
    blocks = []
    for table in contents.tables:
        record = records.get(table.by, {"name": table.scorer})
        facts = {key: value for key, value in record.items() if key not in ("name", "checkpoints")}
        facts |= {f"sha256 of {c['file']}": c["sha256"] for c in record.get("checkpoints", ())}
        facts |= {"left out": " · ".join(table.left_out)} if table.left_out else {}
        lines = "".join(f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in facts.items())
        blocks.append(f"<h3>{escape(table.scorer)}</h3><dl>{lines}</dl>")
    versions = " · ".join(f"{name} {version}" for name, version in contents.about.get("versions", {}).items())
    blocks.append(f"<h3>Versions</h3><p>{escape(versions)}</p>")
    methods = " · ".join(dict.fromkeys(duel.method for duel in contents.duels))
    note = f"Intervals: {escape(methods)}." if methods else ""
    return section("method", "How this was measured", note, "".join(blocks))
