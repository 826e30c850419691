"""What the logged numbers say: the curves as a picture, and a verdict in words."""

import io
import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from PIL import Image

PANELS = (  # title, the metrics in it, a line for orientation
    ("loss", ("loss",), None),  # its line is where it starts: ln 2 for SPIN and DPO, 1/2 for KTO
    ("margin z", ("z",), 0.0),
    ("implicit accuracy", ("implicit_accuracy",), 0.5),
    (
        "errors",
        ("error_policy_real", "error_policy_generated", "error_reference_real", "error_reference_generated"),
        None,
    ),
    ("gradient weight", ("weight",), 0.5),
    ("drift from the opponent", ("drift",), None),
)
SCORED = ("score of the previews", ("score",), None)  # where a scorer rated them
TAIL = 20  # steps that a verdict looks back over
COLLAPSE = 2.0  # a real error that many times the opponent's: the player no longer draws
STILL = 0.02  # implicit accuracy this close to 0.5 at the end of a round: nothing was learnt
WON, WON_OVER = 0.1, 5  # gradient weight, in the mean of so many steps, below which the pairs have been told apart


def tail_mean(steps: list[dict], name: str) -> float:
    """Mean of a metric over a round's last steps; NaN counts for nothing (a batch of thumbs may be all of one kind)."""
    known = [value for value in (step["metrics"][name] for step in steps[-TAIL:]) if not math.isnan(value)]
    return fmean(known) if known else math.nan


def verdict(metrics: dict) -> str:
    """A sentence a round: what the loss alone does not say. metrics: as the trainers write them."""
    rounds = ((number, steps) for number, steps in enumerate(metrics["rounds"], start=1) if steps)
    plays = metrics["method"] == "spin"
    return "\n".join(
        round_verdict(number, steps) + (overshoot_verdict(steps) if plays else "") + score_verdict(steps)
        for number, steps in rounds
    )


def overshoot_verdict(steps: list[dict]) -> str:
    """Where the round went on after its pairs were told apart: AdamW moves on, whatever is left of the gradient."""
    won = told_apart_by([step["metrics"]["weight"] for step in steps])
    if won is None:
        return ""
    advice = "what follows may lead past the data, and the next round back; keep what draws best, or let a scorer"
    return f" Told apart by step {won} (gradient weight under {WON:g}): {advice}."


def told_apart_by(weights: Sequence[float]) -> int | None:
    """Steps after which a round's gradient weights, one a step, say that the pairs are won; None where it ends before."""
    return next((at for at in range(WON_OVER, len(weights)) if fmean(weights[at - WON_OVER : at]) < WON), None)


def score_verdict(steps: list[dict]) -> str:
    """Which step the scorer liked best, and what it gave the last one and what the round began with."""
    scores = {number: step["metrics"]["score"] for number, step in enumerate(steps, start=1) if is_scored([step])}
    if not scores:
        return ""
    best, last, before = max(scores, key=scores.get), max(scores), steps[0]["metrics"].get("score_before")
    told = f" Best score {scores[best]:.4f}, after step {best}; {scores[last]:.4f} after step {last}"
    if before is None:
        return f"{told}."
    worse = " No step is above that: its best is to change nothing." if scores[best] <= before else ""
    return f"{told}; {before:.4f} before the first.{worse}"


def is_scored(steps: list[dict]) -> bool:
    return any("score" in step["metrics"] for step in steps)


def is_paired(steps: list[dict]) -> bool:
    """Whether they compared two sides, as SFT does not."""
    return any("z" in step["metrics"] for step in steps)


def round_verdict(number: int, steps: list[dict]) -> str:
    first = steps[0]["metrics"]["loss"]
    if not is_paired(steps):
        return f"SFT: the loss went from {first:.4f} to {tail_mean(steps, 'loss'):.4f}."
    accuracy = tail_mean(steps, "implicit_accuracy")
    real, was = tail_mean(steps, "error_policy_real"), tail_mean(steps, "error_reference_real")
    told = f"Round {number}: implicit accuracy {accuracy:.2f}, loss {tail_mean(steps, 'loss'):.3f} (from {first:.3f})."
    if real > COLLAPSE * was:
        return told + (
            f" WARNING, collapse: the error on real pictures is {real / was:.1f} times the opponent's. The player wins by"
            " spoiling the generated side. Lower the learning rate, raise beta, or add an SFT term."
        )
    if abs(accuracy - 0.5) < STILL:
        return told + " Nothing was learnt yet: more steps, or a higher learning rate."
    if real > was:
        return told + " The real error has risen above the opponent's: watch it; fewer steps or a lower rate help."
    return told


def draw_curves(metrics: dict) -> Image.Image:
    """All rounds side by side in one picture. Needs matplotlib."""
    from matplotlib.figure import Figure

    steps = [step for round_steps in metrics["rounds"] for step in round_steps]
    panels = (PANELS if is_paired(steps) else PANELS[:1]) + ((SCORED,) if is_scored(steps) else ())
    rows = 2 if len(panels) > 2 else 1
    columns = -(-len(panels) // rows)
    figure = Figure(figsize=(12, 6) if rows > 1 else (6 * columns, 4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, names, level) in zip(axes, panels, strict=False):
        for name in names:
            known = list(points(steps, name))
            at, values = [number for number, _ in known], [value for _, value in known]
            axis.plot(at, values, label=name, linewidth=1, marker="o" if name == "score" else None)
        if title == "loss":
            level = start_of_pairs(steps)
        if level is not None:
            axis.axhline(level, color="grey", linewidth=0.8, linestyle="--")
        mark_rounds(axis, metrics["rounds"])
        axis.set_title(title)
        axis.set_xlabel("step")
        if len(names) > 1:
            axis.legend(fontsize="x-small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return Image.open(buffer).convert("RGB")


def points(steps: list[dict], name: str) -> Iterator[tuple[int, float]]:
    """(step, value) where the metric is; before a score, that of what the round began with, if it was rated."""
    for number, step in enumerate(steps, start=1):
        metrics = step["metrics"]
        if name == "score" and "score_before" in metrics:
            yield number - 1, metrics["score_before"]
        if name in metrics:
            yield number, metrics[name]


def start_of_pairs(steps: list[dict]) -> float | None:
    """The loss of the first step that compared two sides; None where none did."""
    return next((step["metrics"]["loss"] for step in steps if is_paired([step])), None)


def mark_rounds(axis, rounds: list[list[dict]]) -> None:
    """A line where a new round begins."""
    end = 0
    for steps in rounds[:-1]:
        end += len(steps)
        axis.axvline(end + 0.5, color="grey", linewidth=0.8)
