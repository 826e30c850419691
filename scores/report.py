"""A run as a page, a picture, a JSON and a CSV file."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from ..intake import write_atomically, write_text
from . import vico_protocol
from .comparison import duels, means, tables, told_apart
from .page import Contents, page
from .run import Run

AGGREGATION_WORDS = {"single": "its first picture's", "mean": "its pictures' mean", "median": "its pictures' median"}
PUBLISHED_SCORERS = ("DINO ViT-S/16", "CLIP-I (ViT-B/32)", "CLIP score (ViT-B/32)")
FORMULAS = ("=", "+", "-", "@", "\t", "\r")
CSV_COLUMNS = ("scorer", "model", "concept", "prompt", "seed", "score", "picture", "sha256", "by", "error")


def write_report(
    folder: Path,
    out: Path,
    baseline: str | None = None,
    how: str = "mean",
    k: int | None = None,
    rounds: Sequence[str] = (),
    title: str | None = None,
) -> list[Path]:
    """Writes the page and, beside it, .png, .json and .csv. Returns their paths.

    folder: a run's. how, k: the aggregation of a prompt's pictures (statistics.aggregate). rounds: models in order.
    """
    from .charts import summary_picture

    run, out = Run.existing(Path(folder)), Path(out)
    contents = contents_of(run, baseline, how, k, rounds, title or Path(folder).resolve().name)
    write_text(out, page(contents))
    rows = [row | {"picture": picture_within(run.folder, row["picture"])} for row in run.rows]
    write_text(out.with_suffix(".json"), as_json(contents, rows))
    write_text(out.with_suffix(".csv"), as_csv(rows))
    picture = summary_picture(contents)
    write_atomically(out.with_suffix(".png"), lambda temporary: picture.save(temporary, "PNG"))
    return [out, *(out.with_suffix(suffix) for suffix in (".png", ".json", ".csv"))]


def contents_of(run: Run, baseline: str | None, how: str, k: int | None, rounds: Sequence[str], title: str) -> Contents:
    """The numbers of a page. Raises a sentence for a model that the run lacks."""
    models = run.about["models"]
    unknown = [name for name in (*([baseline] if baseline else []), *rounds) if name not in models]
    if unknown:
        raise ValueError(f'Name a model of the run.\nIt has no "{unknown[0]}"; it has {", ".join(models)}.')
    made, baseline = told_apart(tables(run.rows, models), run.about.get("scorers", {})), baseline or models[0]
    return Contents(
        title=title,
        baseline=baseline,
        models=models,
        tables=made,
        duels=duels(made, baseline, how, k),
        means=means(made, how, k),
        rounds=list(rounds),
        published=published(run),
        about=run.about,
        aggregation=AGGREGATION_WORDS.get(
            how, f"the best of its {k or made[0].scores[made[0].models[0]].shape[1]} pictures'"
        ),
    )


def published(run: Run) -> dict[str, dict[str, float]]:
    """ViCo's table with the run's rows under it; empty for other runs. The papers' rows are the standard protocol's."""
    protocol = run.about.get("protocol", "")
    if not protocol.startswith("ViCo"):
        return {}
    scorers = run.about["protocol_scorers"]
    found = vico_protocol.summary([row for row in run.rows if "score" in row and row["by"] in scorers])
    rows: dict[str, dict[str, float]] = {}
    if protocol.endswith("standard"):
        papers = vico_protocol.PUBLISHED.items()
        rows = {f"{name} (paper)": dict(zip(PUBLISHED_SCORERS, numbers, strict=True)) for name, numbers in papers}
    for scorer, models in found.items():
        for model, mean in models.items():
            rows.setdefault(model, {})[scorer] = mean
    return rows


def picture_within(folder: Path, picture: str) -> str:
    """A picture from the run's folder on; of one elsewhere its name alone. A report goes to others, and says nobody's folders."""
    path, home = Path(picture).resolve(), folder.resolve()
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else Path(picture).name


def as_json(contents: Contents, rows: Sequence[dict]) -> str:
    """Every statistic, how it was made, and every raw score."""
    duels = [
        duel._asdict() | {"interval": list(duel.interval), "difference_interval": list(duel.difference_interval)}
        for duel in contents.duels
    ]
    means = [mean._asdict() | {"interval": list(mean.interval)} for mean in contents.means]
    left_out = {table.scorer: table.left_out for table in contents.tables}
    whole = {
        "title": contents.title,
        "baseline": contents.baseline,
        "aggregation": contents.aggregation,
        "duels": duels,
        "means": means,
        "left_out": left_out,
        "run": contents.about,
        "scores": list(rows),
    }
    return json.dumps(without_nan(whole), indent=1, ensure_ascii=False)


def without_nan(value):
    """The same with None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def as_csv(rows: Sequence[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows({name: as_cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def as_cell(value):
    """Text that a spreadsheet would run as a formula gets a quote before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULAS) else value
