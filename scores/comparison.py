"""From raw scores to what a report says: complete tables of prompts × seeds, duels with their intervals."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .statistics import (
    Interval,
    aggregate,
    interval_method,
    mean_difference_interval,
    mean_interval,
    win_rate,
    win_rate_interval,
)


class Table(NamedTuple):
    """One scorer's numbers where every model has them: P prompts, S seeds. Of votes: P pairs, a prompt as often as it has pairs.

    scores: model to [P, S]. pictures: model to its files, [P][S]. left_out: sentences on what is not in the table.
    """

    scorer: str
    by: str
    models: list[str]
    prompts: list[str]
    seeds: list[list[str]]
    scores: dict[str, np.ndarray]
    pictures: dict[str, list[list[str]]]
    left_out: list[str]


class Duel(NamedTuple):
    """One model against the baseline by one scorer. pairs: what it won or lost, as many as prompts but for votes."""

    scorer: str
    by: str
    model: str
    baseline: str
    prompts: int
    win_rate: float
    interval: Interval
    method: str
    difference: float
    difference_interval: Interval
    pairs: int

    @property
    def verdict(self) -> str:
        """wins or loses where the interval lies on one side of 50%, else even."""
        if self.interval.low > 0.5:
            return "wins"
        return "loses" if self.interval.high < 0.5 else "even"


def tables(rows: Sequence[dict], models: Sequence[str]) -> list[Table]:
    """A table for every scorer of the rows, in order of appearance."""
    found = dict.fromkeys(row["by"] for row in rows)
    made = [table([row for row in rows if row["by"] == by], models) for by in found]
    if not any(table.prompts for table in made):
        raise ValueError(
            "Draw every model's pictures from the same prompts and seeds.\n"
            "There is no prompt that every model has a score for at equal seeds."
        )
    return [table for table in made if table.prompts]


def told_apart(made: Sequence[Table], records: dict[str, dict]) -> list[Table]:
    """The tables; where scorers share a name, what they do not share stands behind it: HPS v2 (antialias off).

    records: {by: a scorer's record}, from run.json.
    """
    named = []
    for table in made:
        namesakes = [set(phrases(records.get(other.by, {}))) for other in made if other.scorer == table.scorer]
        shared = set.intersection(*namesakes)
        own = ", ".join(phrase for phrase in phrases(records.get(table.by, {})) if phrase not in shared)
        named.append(table if len(namesakes) == 1 else table._replace(scorer=f"{table.scorer} ({own or table.by})"))
    return named


def phrases(record: dict) -> list[str]:
    """A scorer's record in its smallest parts: files, their hashes' first digits, steps of the preprocessing."""
    files = [(checkpoint["file"], f"sha256 {checkpoint['sha256'][:8]}") for checkpoint in record.get("checkpoints", ())]
    steps = re.split("[,()]", f"{record.get('formula', '')},{record.get('preprocessing', '')}")
    return [*(part for file in files for part in file), *(step.strip() for step in steps if step.strip())]


def table(rows: Sequence[dict], models: Sequence[str]) -> Table:
    """The prompts that all models have at the same seeds, as many seeds as most prompts have. rows: one scorer's."""
    models = [model for model in models if any(row["model"] == model for row in rows)]
    cells: dict[tuple, dict[str, dict[str, dict]]] = {}
    for row in rows:
        if "score" in row:
            key = row["concept"], row["prompt"], row.get("pair", "")
            cells.setdefault(key, {}).setdefault(row["model"], {})[row["seed"]] = row
    shared = {key: common_seeds(cell, models) for key, cell in cells.items()}
    usual = Counter(len(seeds) for seeds in shared.values() if seeds).most_common(1)
    kept = [key for key, seeds in shared.items() if seeds and len(seeds) == usual[0][0]]
    grid = {model: [[cells[key][model][seed] for seed in shared[key]] for key in kept] for model in models}
    return Table(
        scorer=rows[0]["scorer"],
        by=rows[0]["by"],
        models=models,
        prompts=[f"{concept}: {prompt}" if concept else prompt for concept, prompt, _ in kept],
        seeds=[shared[key] for key in kept],
        scores={model: np.array([[row["score"] for row in line] for line in grid[model]]) for model in models},
        pictures={model: [[row["picture"] for row in line] for line in grid[model]] for model in models},
        left_out=left_out(rows, cells, kept),
    )


def common_seeds(cell: dict[str, dict[str, dict]], models: Sequence[str]) -> list[str]:
    """The seeds that every model has for this prompt, numbers in their order."""
    shared = set.intersection(*(set(cell.get(model, ())) for model in models))
    return sorted(shared, key=in_order)


def in_order(seed: str) -> tuple[list[int], str]:
    """A key to sort seeds by: 42, 42-1, 42-2, 43."""
    parts = seed.split("-")
    return (list(map(int, parts)), "") if all(map(str.isdecimal, parts)) else ([0], seed)


def left_out(rows: Sequence[dict], cells: dict, kept: list) -> list[str]:
    sentences = []
    if len(cells) > len(kept):
        missing = f"{len(cells) - len(kept)} of {len(cells)} prompts"
        sentences.append(f"{missing}, which not every model has at equal seeds, and at as many as the others")
    broken = [row for row in rows if "error" in row]
    return sentences + [f"{row['model']}: {row['error']}" for row in broken]


def duel(table: Table, model: str, baseline: str, how: str = "mean", k: int | None = None) -> Duel:
    """model against baseline over the table's rows, each one number by the aggregation; intervals are over prompts."""
    a, b = (aggregate(table.scores[name], how, k) for name in (model, baseline))  # [P] each
    return Duel(
        scorer=table.scorer,
        by=table.by,
        model=model,
        baseline=baseline,
        prompts=len(set(table.prompts)),
        win_rate=win_rate(a, b),
        interval=win_rate_interval(a, b, prompts=table.prompts),
        method=interval_method(a, b, table.prompts),
        difference=float((a - b).mean()),
        difference_interval=mean_difference_interval(a, b, prompts=table.prompts),
        pairs=len(a),
    )


def duels(made: Sequence[Table], baseline: str, how: str = "mean", k: int | None = None) -> list[Duel]:
    """Every other model against the baseline, by every scorer that saw both."""
    return [
        duel(table, model, baseline, how, k)
        for table in made
        if baseline in table.models
        for model in table.models
        if model != baseline
    ]


class Mean(NamedTuple):
    """A model's mean over prompts by one scorer, with its interval."""

    scorer: str
    by: str
    model: str
    mean: float
    interval: Interval


def means(made: Sequence[Table], how: str = "mean", k: int | None = None) -> list[Mean]:
    """Every model's mean by every scorer, on the prompts that all models share."""
    found = []
    for table in made:
        for model in table.models:
            values = aggregate(table.scores[model], how, k)
            interval = mean_interval(values, prompts=table.prompts)
            found.append(Mean(table.scorer, table.by, model, float(values.mean()), interval))
    return found
