"""Win rates and their intervals: paired by prompt, ties count half, the prompts are what is resampled."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 9999  # scipy's own default: the interval's ends are then steady to about 0.1 points at 200 prompts
BATCH_NUMBERS = 4_000_000  # resampled numbers that are held at once: 32 MB


class Interval(NamedTuple):
    """The ends of a confidence interval, in the unit of what it bounds."""

    low: float
    high: float


def as_prompts(scores, name: str) -> np.ndarray:
    """[P] or [P, S] numbers as float64 [P, S]: prompts by seeds. Raises where a number is missing."""
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim == 1:
        scores = scores[:, None]
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"{name} has the shape {scores.shape}; it must hold one score a prompt [P], or [P, seeds].")
    missing = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if missing.size:
        rows = ", ".join(map(str, missing[:8])) + (", …" if missing.size > 8 else "")
        raise ValueError(f"{name} has no finite score at prompt {rows}; leave that prompt out of both models.")
    return scores


def paired(a, b) -> tuple[np.ndarray, np.ndarray]:
    """Both models' scores as [P, S] at equal prompts and equal seeds."""
    a, b = as_prompts(a, "a"), as_prompts(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"a is {a.shape} and b is {b.shape}; a comparison needs the same prompts and seeds in both.")
    return a, b


def outcomes(a, b) -> np.ndarray:
    """How much of each prompt a wins, in [0, 1]: 1 a win, ½ a tie, 0 a loss, averaged over equal seeds. [P]"""
    a, b = paired(a, b)
    return ((a > b) + 0.5 * (a == b)).mean(axis=1)  # [P]


def win_rate(a, b) -> float:
    """The share of prompts that a wins over b: mean(1[a > b] + ½·1[a = b]).

    a, b: [P] scores paired by prompt, or [P, S] paired by prompt and seed.
    """
    return float(outcomes(a, b).mean())


def win_rate_interval(a, b, confidence: float = 0.95, seed: int = 0, prompts: Sequence[str] | None = None) -> Interval:
    """The win rate's interval: BCa bootstrap over prompts, or the exact bound where every prompt came out alike.

    a, b: as for win_rate. The seed fixes the resampling, so that a report can be made twice. prompts: see per_prompt.
    """
    totals, counts = per_prompt(outcomes(a, b), prompts)
    won = totals / counts
    if all_alike(won):
        return alike_interval(won[0], len(won), confidence)
    return with_unseen(bca_interval(totals, counts, confidence, seed), won, confidence)


def mean_difference_interval(
    a, b, confidence: float = 0.95, seed: int = 0, prompts: Sequence[str] | None = None
) -> Interval:
    """BCa interval of mean(a - b) over prompts, in the score's own unit; NaN ends where it cannot be told.

    Scores have no bounds, so a single prompt, or differences that are all alike, say nothing about the spread.
    """
    a, b = paired(a, b)
    return mean_interval((a - b).mean(axis=1), confidence, seed, prompts)


def mean_interval(values, confidence: float = 0.95, seed: int = 0, prompts: Sequence[str] | None = None) -> Interval:
    """BCa interval of the mean of values, over prompts, which are independent; NaN ends where these are all alike."""
    totals, counts = per_prompt(np.asarray(values, dtype=np.float64), prompts)
    return Interval(np.nan, np.nan) if all_alike(totals / counts) else bca_interval(totals, counts, confidence, seed)


def per_prompt(values: np.ndarray, prompts: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Each prompt's sum and its number of values. prompts: every value's; None where each has a prompt of its own.

    Values of one prompt are not independent, so they are resampled together.
    """
    if prompts is None:
        return values, np.ones(len(values))
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    places = [places[prompt] for prompt in prompts]
    return np.bincount(places, values), np.bincount(places)


def all_alike(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())


def alike_interval(outcome: float, prompts: int, confidence: float = 0.95) -> Interval:
    """What `prompts` equal outcomes in [0, 1] prove: resampling them would give a point, which claims too much.

    With q = ((1 - confidence)/2)^(1/P), at least a share q of all prompts has this outcome; the rest may lie
    anywhere in [0, 1]. For all wins or all losses this is the Clopper–Pearson interval.
    """
    q = ((1 - confidence) / 2) ** (1 / prompts)
    return Interval(float(q * outcome), float(1 - q * (1 - outcome)))


def with_unseen(interval: Interval, won: np.ndarray, confidence: float) -> Interval:
    """Makes room for what resampling cannot draw: wins where no prompt was won, losses where none was lost.

    As in alike_interval, a share 1 - q of all prompts may be what was never seen. Three losses and 29 ties would
    otherwise pass for a proven loss.
    """
    q = ((1 - confidence) / 2) ** (1 / len(won))
    low = interval.low if (won < 0.5).any() else q * interval.low
    high = interval.high if (won > 0.5).any() else q * interval.high + 1 - q
    return Interval(float(low), float(high))


def bca_interval(totals: np.ndarray, counts: np.ndarray, confidence: float, seed: int) -> Interval:
    """Bias-corrected and accelerated bootstrap interval of the mean (Efron 1987). [P] each, the means not all alike."""
    from scipy.stats import bootstrap

    result = bootstrap(
        (totals, counts),
        mean_of,
        paired=True,
        vectorized=True,
        method="BCa",
        confidence_level=confidence,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH_NUMBERS // len(totals)),
        random_state=np.random.default_rng(seed),
    )
    return Interval(*map(float, result.confidence_interval))


def mean_of(totals: np.ndarray, counts: np.ndarray, axis: int) -> np.ndarray:
    return totals.sum(axis=axis) / counts.sum(axis=axis)


def interval_method(a, b, prompts: Sequence[str] | None = None) -> str:
    """Which of the two intervals win_rate_interval gives, in words, for the report."""
    totals, counts = per_prompt(outcomes(a, b), prompts)
    won = totals / counts
    if all_alike(won):
        return "exact (every prompt came out alike)"
    unseen = "" if (won < 0.5).any() and (won > 0.5).any() else ", with room for the outcome that no prompt had"
    return f"BCa bootstrap over prompts{unseen}"


AGGREGATIONS = ("single", "mean", "median", "best")


def aggregate(scores, how: str = "mean", k: int | None = None) -> np.ndarray:
    """One number a prompt from its pictures' scores [P, S]: the first, the mean, the median, the best of the first k.

    Returns [P]. k is for "best" alone and takes all S pictures where it is None.
    """
    scores = as_prompts(scores, "scores")
    if how not in AGGREGATIONS:
        raise ValueError(f'There is no aggregation "{how}"; choose one of {", ".join(AGGREGATIONS)}.')
    if how == "single":
        return scores[:, 0]
    if how == "best":
        return best_of(scores, scores.shape[1] if k is None else k)
    return np.mean(scores, axis=1) if how == "mean" else np.median(scores, axis=1)


def best_of(scores: np.ndarray, k: int) -> np.ndarray:
    """The best of the first k of each row. scores: [P, S]. Returns [P]."""
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"Best of {k} was asked for, but every prompt has {scores.shape[1]} scored pictures.")
    return scores[:, :k].max(axis=1)
