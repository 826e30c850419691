"""A score of what a run draws, beside its loss: which step was the best, and when to stop."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

SCORE = "score"  # among the metrics of the steps that were scored
BEFORE = "score_before"  # among those of the first step: of what the run began with


@dataclass(frozen=True)
class HeldOut:
    """Scores the model after every so many steps; higher is better.

    patience: so many steps' scores in a row that are no new best of theirs end the run; 0: none do. made_from: what makes
    two scores comparable (scorer, prompts, how they are drawn), JSON values. from_start: what the run begins with is scored
    too, as step 0, and may be the best.
    """

    score: Callable[[], float]
    every: int
    patience: int = 0
    made_from: dict = field(default_factory=dict)
    from_start: bool = False

    def is_due(self, history: Sequence) -> bool:
        """Whether the last step of the history is to be scored, and was not yet."""
        return bool(history) and history[-1].step % self.every == 0 and SCORE not in history[-1].metrics

    def is_over(self, history: Sequence) -> bool:
        """Whether the score has not risen for as long as patience lasts.

        The start does not count: first steps often fall below it, and later ones rise above.
        """
        best = best_of({step: score for step, score in scores(history).items() if step > 0})
        return best is not None and 0 < self.patience <= sum(step > best for step in scores(history))


def scores(history: Sequence) -> dict[int, float]:
    """{step: its score} of the steps that were scored; 0 is what the run began with."""
    before = [report.metrics[BEFORE] for report in history[:1] if BEFORE in report.metrics]
    return dict(enumerate(before)) | {
        report.step: report.metrics[SCORE] for report in history if SCORE in report.metrics
    }


def best_step(history: Sequence) -> int | None:
    """The step of the highest score, the first of equals; None where none was scored."""
    return best_of(scores(history))


def best_of(scored: dict[int, float]) -> int | None:
    known = {step: score for step, score in scored.items() if not math.isnan(score)}
    return max(known, key=known.get, default=None)
