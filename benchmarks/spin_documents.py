"""The evidence's tables, figures and pictures, and its numbers, out of what a study's folder holds."""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ..sprite_world.pictures import show
from .grid import named_rows
from .spin_evidence import KEPT, METHODS, NOISES, PARTS, RATE_OF, SEARCH_SEED, SEARCHED_AT, Cell, Study, searched, told
from .spin_judges import Shown, win
from .spin_people import PAIRS, agreement

JUDGES = ("taste", "prompt", "fidelity", "people", "preference model")
DUELS = (
    ("SPIN", "SFT"),
    ("SPIN", "DPO"),
    ("SPIN", "DPO from SFT"),
    ("SPIN", "KTO"),
    ("SPIN from SFT", "DPO from SFT"),
    ("SPIN in short rounds", "SPIN"),
    ("SPIN in short rounds", "DPO"),
    ("SPIN slowing down", "SPIN"),
    ("SPIN slowing down", "SFT"),
    ("SPIN slowing down", "DPO"),
)
AT_BEST = "each kept at its best"
REALS = (8, 16, 32, 64, 128, 256, 512)  # numbers of DPO's pairs that are looked for
CLAIMED = {"SFT": 1, "DPO": 2}  # the round from which the paper has SPIN above it
MEASURED = ("taste", "prompt", "class word", "distance", "Fréchet", "people", "wins over the base", "seeds")
MARKERS = "<Xo^sDvP*"  # of the rates, from the lowest
FARTHEST = 1.5  # times the base's distances: rates at which a method collapses are left out of the front's figure


@dataclass(frozen=True)
class State:
    """A model after one third of its training, under the training seeds that are there: by judge [P, S], Fréchet distances."""

    seeds: tuple[int, ...]
    by_judge: dict[str, np.ndarray]
    frechet: float
    class_word: float

    def under(self, seeds: tuple[int, ...]) -> dict[str, np.ndarray]:
        places = [self.seeds.index(seed) for seed in seeds]
        return {judge: values[:, places] for judge, values in self.by_judge.items()}


def duel(a: State, b: State) -> dict[str, dict]:
    """a's wins over b before each judge, under the seeds that both have."""
    seeds = tuple(sorted(set(a.seeds) & set(b.seeds)))
    if not seeds:
        return {}
    first, second = a.under(seeds), b.under(seeds)
    return {judge: win(first[judge], second[judge]) for judge in JUDGES}


class Findings:
    """What a study's folder says."""

    def __init__(self, study: Study):
        self.study, self.known = study, {}

    def base(self) -> State:
        return self.state(self.shown(lambda seed: f"base-{seed}.npz"), 0)

    def shown(self, file: Callable[[int], str]) -> dict[int, Shown]:
        """By training seed, where it is there."""
        found = {seed: self.study.shown(file(seed)) for seed in range(10)}
        return {seed: shown for seed, shown in found.items() if shown is not None}

    def state(self, shown: dict[int, Shown], third: int) -> State:
        by_judge = [one.by_judge(third) for one in shown.values()]
        return State(
            tuple(shown),
            {judge: np.stack([one[judge] for one in by_judge], axis=1) for judge in JUDGES},
            float(np.mean([one.frechet[third] for one in shown.values()])),
            float(np.mean([one.class_word[third] for one in shown.values()])),
        )

    def states(self, kind: str, noise: float, name: str, real: int | None = None) -> list[State]:
        """After each third; empty where nothing was trained."""
        key = (kind, noise, name, real)
        if key not in self.known:
            self.known[key] = self._states(kind, noise, name, real or self.study.sizes.real)
        return self.known[key]

    def _states(self, kind: str, noise: float, name: str, real: int) -> list[State]:
        rate = self.study.rate(kind, name, make=False)
        if rate is None:
            return []
        return self.thirds(Cell(kind, noise, real, name, rate, 0))

    def thirds(self, cell: Cell) -> list[State]:
        """The cell's training under every seed that is there."""
        shown = self.shown(lambda seed: replace(cell, seed=seed).file)
        thirds = min((len(one.frechet) for one in shown.values()), default=0)
        return [self.state(shown, third) for third in range(thirds)]

    def kept_at_best(self, kind: str, noise: float, name: str) -> tuple[float, int, State] | None:
        """The rate, the steps and the state at which the method is kept; None where that was not trained."""
        best = self.study.at_best(kind, noise, name, make=False)
        if best is None:
            return None
        cell, third = best
        states = self.thirds(cell) if cell.thirds else self.states(kind, noise, name)
        return (cell.rate, (third + 1) * self.study.sizes.steps, states[third]) if states else None

    def duels(self, kind: str, noise: float) -> dict[str, dict]:
        """{"SPIN over DPO round 2": {judge: {win, low, high, …}}}: at equal steps, and each kept at its best at its own."""
        found = {}
        for a, b in DUELS:
            pairs = zip(self.states(kind, noise, a), self.states(kind, noise, b), strict=False)
            for number, (first, second) in enumerate(pairs, start=1):
                if against := duel(first, second):
                    found[f"{a} over {b} round {number}"] = against
        best = {name: kept for name in KEPT if (kept := self.kept_at_best(kind, noise, name))}
        for name in best if "SPIN" in best else ():
            if name != "SPIN" and (against := duel(best["SPIN"][2], best[name][2])):
                found[f"SPIN over {name}, {AT_BEST}"] = against
        return found

    def all_duels(self) -> dict[str, dict[str, dict]]:
        found = {kind: {f"{noise:g}": self.duels(kind, noise) for noise in NOISES} for kind in PAIRS}
        return {kind: {n: duels for n, duels in by_noise.items() if duels} for kind, by_noise in found.items()}


# ---- tables --------------------------------------------------------------------------------------------------------


def cell_text(found: dict) -> str:
    return f"{found['win']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def table(head: tuple[str, ...], rows: list[tuple]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def state_name(name: str, number: int, steps: int) -> str:
    whole = steps // PARTS.get(name, 1) * PARTS.get(name, 1)
    return f"{name} round {number}" if name == "SPIN" else f"{name} ({number * whole} steps)"


def state_row(name: str, state: State, base: State) -> tuple:
    mean = {judge: values.mean() for judge, values in state.by_judge.items()}
    wins = "" if state is base else cell_text(duel(state, base)["preference model"])
    return (
        name,
        f"{mean['taste']:.3f}",
        f"{mean['prompt']:.3f}",
        f"{state.class_word:.3f}",
        f"{-mean['fidelity']:.1f}",
        f"{state.frechet:.0f}",
        f"{mean['people'] - base.by_judge['people'].mean():+.2f}",
        wins,
        len(state.seeds),
    )


def model_table(found: Findings, kind: str, noise: float, base: State) -> str:
    rows = [state_row("base", base, base)]
    for name in METHODS:
        for number, state in enumerate(found.states(kind, noise, name), start=1):
            rows.append(state_row(state_name(name, number, found.study.sizes.steps), state, base))
    return table(("model", *MEASURED), rows)


def kept_table(found: Findings, kind: str, noise: float, base: State) -> str:
    """Each method at the rate and after the steps that were worth the most on the search's prompts."""
    rows = []
    for name in KEPT:
        if kept := found.kept_at_best(kind, noise, name):
            rate, steps, state = kept
            rows.append(state_row(f"{name} ({steps} steps at {rate:g})", state, base))
    return table((f"model, {AT_BEST}", *MEASURED), rows) if rows else ""


def duel_table(duels: dict[str, dict]) -> str:
    rows = [(name, *(cell_text(by_judge[judge]) for judge in JUDGES)) for name, by_judge in duels.items()]
    return table(("duel", *JUDGES), rows)


def noise_table(by_noise: dict[str, dict], name: str) -> str:
    rows = [
        (noise, *(cell_text(duels[name][judge]) for judge in JUDGES), duels[name]["taste"]["seeds"])
        for noise, duels in by_noise.items()
        if name in duels
    ]
    return table(("label noise", *JUDGES, "seeds"), rows)


def rate_table(study: Study, kind: str) -> str:
    """Every rate that was tried, and what its pictures were worth."""
    rows = [(name, told(study.search(kind, name, make=False))) for name in METHODS if name not in RATE_OF]
    return table(("method", "rate: worth to people in the mean (after each third)"), [row for row in rows if row[1]])


def data_table(found: Findings, base: State) -> str:
    """DPO by the number of its pairs, after two thirds of its steps, beside SPIN's round 2."""
    spin = found.states("independent", SEARCHED_AT, "SPIN")
    rows = []
    for real in REALS:
        states = found.states("independent", SEARCHED_AT, "DPO", real)
        if states and spin and (against := duel(spin[1], states[1])):
            mean = states[1].by_judge["people"].mean() - base.by_judge["people"].mean()
            rows.append((real, f"{mean:+.2f}", *(cell_text(against[judge]) for judge in JUDGES)))
    return table(("pairs of DPO", "people", *(f"SPIN wins, {judge}" for judge in JUDGES)), rows)


def side(found: dict) -> str:
    """Where the interval lies."""
    return "above" if found["low"] > 0.5 else "below" if found["high"] < 0.5 else "open"


def verdicts(duels: dict[str, dict]) -> list[str]:
    """The paper's claims, judge by judge: holds where SPIN is above in every round from the claimed one."""
    said = []
    for other, first in CLAIMED.items():
        rounds = [duels[name] for name in duels if name.startswith(f"SPIN over {other} round ")][first - 1 :]
        for judge in JUDGES if rounds else ():
            sides = {side(one[judge]) for one in rounds}
            word = "holds" if sides == {"above"} else "does not hold" if "below" in sides else "is open"
            said.append(f"SPIN above {other} from round {first}, by {judge}: {word}")
    return said


def turns(by_noise: dict[str, dict], name: str) -> list[str]:
    """At which shares of wrong labels a duel is won, lost and open, judge by judge."""
    said = []
    for judge in JUDGES:
        sides = {noise: side(duels[name][judge]) for noise, duels in by_noise.items() if name in duels}
        at = {word: [noise for noise in sides if sides[noise] == word] for word in ("above", "open", "below")}
        if sides:
            told = "; ".join(f"{word} at {', '.join(noises)}" for word, noises in at.items() if noises)
            said.append(f"{name}, by {judge}: {told}")
    return said


# ---- figures -------------------------------------------------------------------------------------------------------


def new_figure(columns: int, width: float = 4.6):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt, *plt.subplots(1, columns, figsize=(width * columns, 3.6), layout="constrained", squeeze=False)


def draw_front(study: Study, path: Path, kind: str = "independent") -> None:
    """Preference against fidelity on the search's prompts: a point a method and rate, at the third that is worth the most."""
    base = study.shown(f"base-{SEARCH_SEED}.npz")
    start, wins_of = base.by_judge(0), lambda shown: shown["preference model"][:, None]
    tried = {name: study.search(kind, name, make=False) for name in METHODS if name not in RATE_OF}
    points = []  # fidelity, minus the Fréchet distance, wins, method, rate
    for name, worths in tried.items():
        for rate, worth in worths.items():
            one, third = study.shown(searched(kind, name, rate, study.sizes).file), int(np.argmax(worth))
            shown = one.by_judge(third)
            y = win(wins_of(shown), wins_of(start))["win"]
            points.append((shown["fidelity"].mean(), -one.frechet[third], y, name, rate))
    plt, figure, [axes] = new_figure(2)
    colours = {name: f"C{place}" for place, name in enumerate(tried)}
    starts = start["fidelity"].mean(), -base.frechet[0]
    near = [point for point in points if all(x > FARTHEST * at for x, at in zip(point, starts, strict=False))]
    markers = dict(zip(sorted({rate for *_, rate in near}), MARKERS, strict=False))
    for along, (ax, at) in enumerate(zip(axes, starts, strict=True)):
        for point in reversed(near):  # from SFT, a first third is SFT itself: SFT is drawn over it
            ax.plot(point[along], point[2], color=colours[point[3]], marker=markers[point[4]], markersize=7)
        outer = front([(point[along], point[2]) for point in near])
        edge = [(ax.get_xlim()[0], outer[0][1]), *outer, (outer[-1][0], ax.get_ylim()[0])] if outer else []
        line = {"color": "black", "linewidth": 0.8, "zorder": 0, "scalex": False, "scaley": False}
        ax.step(*np.reshape(edge, (-1, 2)).T, where="pre", **line)
        ax.axvline(at, color="grey", linewidth=0.8)
    axes[0].set(xlabel="fidelity: minus the distance to the true scene", ylabel="wins over the base, preference model")
    axes[1].set(xlabel="minus the Fréchet distance to fine pictures")
    handle = partial(plt.Line2D, [], [], linewidth=0)
    methods = [handle(color=colours[name], marker="s", label=name) for name in colours if tried[name]]
    rates = [handle(color="black", marker=mark, label=f"{rate:g}") for rate, mark in markers.items()]
    start_line = plt.Line2D([], [], color="grey", linewidth=0.8, label="the base")
    figure.legend(handles=[*methods, *rates, start_line], loc="outside right", fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that none of the others is above in both, by their first coordinate."""
    found = []
    for point in sorted(points, reverse=True):
        if not found or point[1] > found[-1][1]:
            found.append(point)
    return found[::-1]


def draw_crossover(by_noise: dict[str, dict], path: Path) -> None:
    """SPIN's wins over DPO by label noise, after rounds 2 and 3 and each kept at its best, a line a judge."""
    plt, figure, [axes] = new_figure(3)
    for ax, when in zip(axes, (" round 2", " round 3", f", {AT_BEST}"), strict=True):
        name = f"SPIN over DPO{when}"
        found = {float(noise): duels[name] for noise, duels in by_noise.items() if name in duels}
        for place, judge in enumerate(JUDGES):
            wins = [duels[judge] for duels in found.values()]
            spread = [[one["win"] - one["low"] for one in wins], [one["high"] - one["win"] for one in wins]]
            x = [noise + 0.004 * (place - 2) for noise in found]
            ax.errorbar(x, [one["win"] for one in wins], yerr=spread, marker="o", capsize=2, label=judge)
        ax.axhline(0.5, color="grey", linewidth=0.8)
        ax.set(xlabel="share of wrong labels", ylabel=f"{name}: wins", ylim=(0, 1))
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_pictures(found: Findings, path: Path) -> None:
    """The same prompts and noise, a row a model, after all steps at the search's noise."""
    study, seed = found.study, min(found.base().seeds)
    rows = {"base": study.shown(f"base-{seed}.npz")}
    for name in METHODS:
        rate = study.rate("independent", name, make=False)
        shown = rate and study.shown(Cell("independent", SEARCHED_AT, study.sizes.real, name, rate, seed).file)
        if shown is not None:
            rows[name] = shown
    strips = {name: Image.fromarray(np.concatenate(list(show(one.pictures)), 1)) for name, one in rows.items()}
    named_rows(strips, label=150).save(path, optimize=True)


# ---- all of it -----------------------------------------------------------------------------------------------------


def write_documents(study: Study, docs: Path) -> dict:
    """Tables, figures, pictures and numbers into docs; returns the numbers."""
    docs.mkdir(parents=True, exist_ok=True)
    keep_searches(study)
    found = Findings(study)
    duels, base = found.all_duels(), found.base()
    text = as_markdown(found, duels, base)
    (docs / "spin_evidence.md").write_text(text, encoding="utf-8")
    (docs / "spin_evidence.json").write_text(json.dumps(duels, indent=1) + "\n", encoding="utf-8")
    draw_front(study, docs / "spin_front.png")
    draw_crossover(duels["independent"], docs / "spin_crossover.png")
    draw_pictures(found, docs / "spin_evidence_pictures.png")
    print(text)
    return duels


def keep_searches(study: Study) -> None:
    """What was seen in every search goes to the results, so that another machine chooses the same rates."""
    for kind, name in itertools.product(PAIRS, KEPT):
        for rate in study.search(kind, name, make=False):
            study.shown(searched(kind, name, rate, study.sizes).file)


def bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def as_markdown(found: Findings, duels: dict, base: State) -> str:
    study, sizes = found.study, found.study.sizes
    parts = []
    for kind, by_noise in duels.items():
        for noise, by_name in by_noise.items():
            parts += [f"## Pairs: {kind}, label noise {noise}", model_table(found, kind, float(noise), base)]
            parts += [kept_table(found, kind, float(noise), base), duel_table(by_name), bullets(verdicts(by_name))]
    for kind, by_noise in duels.items():
        rounds = [f"SPIN over DPO round {number}" for number in range(1, sizes.rounds + 1)]
        for name in (*rounds, f"SPIN over DPO, {AT_BEST}"):
            if not any(by_name.get(name) for by_name in by_noise.values()):
                continue
            parts += [
                f"## {name} by label noise, pairs: {kind}",
                noise_table(by_noise, name),
                bullets(turns(by_noise, name)),
            ]
    parts += ["## DPO's data", data_table(found, base)]
    parts += [
        f"## Rates tried, pairs: {kind}\n\n{rate_table(study, kind)}" for kind in duels if any(duels[kind].values())
    ]
    told_by = ", ".join(f"{name} {value:.3f}" for name, value in agreement(SEARCHED_AT).items())
    parts.append(
        f"{sizes.real} pairs, {sizes.batch} a step, {sizes.prompts} prompts; Euler, {sizes.sampling_steps} steps. "
        f"distance: to the nearest drawing of the prompt's true scene; people: what people in the mean gain over the base, in "
        f"standard deviations of what they see. At label noise {SEARCHED_AT:g}: {told_by}. Preference model, held out: "
        + ", ".join(
            f"{name} {value}" if isinstance(value, int) else f"{name} {value:.3f}"
            for name, value in study.preference_model[1].items()
        )
        + ". Intervals: prompts and training seeds resampled; with one seed, prompts alone."
    )
    return "\n\n".join(part for part in parts if part) + "\n"
