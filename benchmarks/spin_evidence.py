"""When does self-play beat DPO? python -m vico_spin.benchmarks.spin_evidence [--quick] [--docs docs/spin] [--json]

In the Sprite World, from its base, on pairs as people make them: two independent pictures of one prompt by a stronger model
with faults, chosen by people who look for taste, prompt and fidelity in different shares, with ties and wrong labels (--pairs
little-better: by a model that draws hardly better than the base; same-scene: one creature in one scene, drawn finely and
crudely). The winners are the real data of SFT and SPIN; DPO and KTO learn from both pictures. All methods take equal numbers
of gradient steps over the same pairs; those "from SFT" take their first third as SFT. Each has the rate at which its pictures
are worth the most to people in the mean, over its three thirds, on other prompts and another training seed, at label noise
0.2: rates are tried upwards until one that is at least 2.5 times the best is worse, and where the lowest is the best, halves
of it until one is worse, three times at most. Beside that, each is kept at its best, as one who looks at the pictures would:
by the rate and the third, of all that the search has drawn, whose pictures are worth the most. "SPIN in short rounds" is SPIN
at its rate with three rounds of a third of the steps (16 of 50) for each; "SPIN slowing down" takes the rate at which SPIN is
kept at its best in round 1, and a quarter of it from round 2 on.

Judges: taste, prompt, fidelity, people in the mean, and a preference model that learnt from 20,000 noisy choices. A win is a
picture that the judge puts above the other model's of the same prompt and noise; intervals are bootstrapped over prompts and
training seeds.

Every training is kept in --output as the pictures that it drew, and found again: a run can be cut, several processes share
the work of one folder, and --pairs, --noises, --methods, --reals and --seeds take a part of it. Documents show what is there.
Beside them, in results, is kept what the judges saw in the pictures: small enough to be committed, so that another machine
goes on where this one stopped. The preference model is learnt once, from what the search has drawn by the first documents.

The whole: all methods on people's pairs at label noise 0.2, DPO on 16 and 256 of them; DPO and SPIN at label noise 0 to 0.4,
and on pairs of one scene at 0 and 0.2; what is kept at its best of the first two.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from ..scripts.get_host import ROOT
from ..scripts.sprite_world_card import BASE
from ..sprite_world.pictures import evaluation_prompts
from .kept import claim, held, save_arrays
from .spin_arena import Arena, Method
from .spin_judges import (
    CHOICES,
    PreferenceModel,
    Shown,
    choices,
    load_preference_model,
    preference,
    save_preference_model,
    seen_by_third,
    train_preference_model,
)
from .spin_people import PAIRS, pairs, utility

METHODS = {  # in the order in which they are run: what is from SFT needs SFT's rate
    "SFT": Method("sft", 0),
    "DPO": Method("dpo", 0),
    "SPIN": Method("spin", 0),
    "DPO from SFT": Method("dpo", 0),
    "SPIN from SFT": Method("spin", 0),
    "KTO": Method("kto", 0, share_noise=False),
    "SPIN in short rounds": Method("spin", 0),
    "SPIN slowing down": Method("spin", 0),
}
PARTS = {"SPIN in short rounds": 3}  # rounds to a third of the training, of so much fewer steps each
SLOWED = {"SPIN slowing down": 4}  # round 1 at the rate of SPIN's best third, later ones at so many times less
RATE_OF = {"SPIN in short rounds": "SPIN", "SPIN slowing down": "SPIN"}  # one thing changed, so no search of its own
KEPT = tuple(name for name in METHODS if name not in RATE_OF)
NOISES = (0.0, 0.1, 0.2, 0.3, 0.4)  # that documents look for
SEARCHED_AT, SEARCH_SEED = 0.2, 99
FAR = 2.5  # times the best rate: a rate beyond that is the last that is tried
HALVINGS = 3  # of the lowest rate: a method that only harms is the better the less it does


Worth = tuple[float, ...]  # what people in the mean find the pictures worth that are drawn after each third


@dataclass(frozen=True)
class Sizes:
    """How much is drawn and trained. quick shows that it runs; the tables need the whole."""

    real: int = 64
    batch: int = 16
    steps: int = 50
    rounds: int = 3
    prompts: int = 200
    search_prompts: int = 40
    sampling_steps: int = 10
    choices: int = CHOICES
    rates: tuple[float, ...] = (4e-5, 1.2e-4, 4e-4, 1.2e-3, 4e-3)


QUICK = Sizes(
    real=16, batch=4, steps=3, rounds=2, prompts=10, search_prompts=8, sampling_steps=6, choices=600, rates=(7e-5, 3e-4)
)


@dataclass(frozen=True)
class Cell:
    """One training: the pairs that it learns from, how, by which seed, and how many thirds of it (None: all)."""

    pairs: str
    noise: float
    real: int
    name: str
    rate: float
    seed: int
    thirds: int | None = None

    @property
    def file(self) -> str:
        method = self.name.replace(" ", "_")
        part = "" if self.thirds is None else f"-first{self.thirds}"
        return f"{self.pairs}-{self.noise:g}-{self.real}-{method}-{self.rate:g}{part}-{self.seed}.npz"


class Study:
    """Trainings by their cell, each in its file; the arena is only entered for what is missing.

    folder: of the pictures. results: of what judges saw in them, which stands for pictures that are gone.
    """

    def __init__(self, weights: Path, sizes: Sizes, folder: Path, results: Path):
        self.sizes, self.folder, self.results, self.weights = sizes, folder, results, weights
        self.worths: dict[str, Worth] = {}
        self.judged: dict[str, Shown] = {}
        self.prompts = evaluation_prompts(sizes.prompts, seed=7)
        self.search_prompts = evaluation_prompts(sizes.search_prompts, seed=11)
        plan = {name: value for name, value in asdict(sizes).items() if name != "rates"}  # more can be added
        for claimed in (folder, results):
            claim(claimed, weights, plan)

    @cached_property
    def arena(self) -> Arena:
        return Arena(self.weights, self.sizes.batch, self.sizes.sampling_steps)

    def prompts_of(self, seed: int) -> list[str]:
        return self.search_prompts if seed == SEARCH_SEED else self.prompts

    # ---- what is kept

    def is_there(self, file: str) -> bool:
        return (self.results / file).exists() or (self.folder / file).exists()

    def art(self, file: str) -> np.ndarray:
        """[S, P, 32, 32, 3]"""
        return np.load(self.folder / file)["art"]

    def made(self, file: str, make: Callable[[], dict[str, np.ndarray]], wait: bool = True) -> bool:
        """Whether it is there, made where it is missing; another process that is making it is waited for, or left alone."""
        with held(self.folder / "locks" / file, wait) as mine:
            if mine and not self.is_there(file):
                arrays = make()
                save_arrays(self.folder / file, arrays)
                print(file, flush=True)
        return self.is_there(file)

    def base(self, seed: int) -> bool:
        draw = lambda: {"art": self.arena.draw(self.arena.base, self.prompts_of(seed), seed)[None]}  # noqa: E731
        return self.made(f"base-{seed}.npz", draw)

    def trained(self, cell: Cell, wait: bool = True) -> bool:
        return self.made(cell.file, partial(self._train, cell), wait)

    def shown(self, file: str) -> Shown | None:
        """What all judges see in its pictures, kept from the first time on; None where it is not there."""
        if file not in self.judged and self.is_there(file):
            path = self.results / file
            if not path.exists():
                prompts = self.search_prompts if file.endswith(f"-{SEARCH_SEED}.npz") else self.prompts
                found = Shown.of(self.art(file), prompts, partial(preference, self.preference_model[0]))
                save_arrays(path, vars(found))
            self.judged[file] = Shown(**np.load(path))
        return self.judged.get(file)

    def _train(self, cell: Cell) -> dict[str, np.ndarray]:
        learnt_from = pairs(cell.pairs, cell.seed, cell.real, cell.noise)
        folder = self.folder / "runs" / cell.file.removesuffix(".npz")
        states = self.arena.train(self.method(cell), learnt_from, cell.seed, folder)
        prompts = self.prompts_of(cell.seed)
        losses = [[number, report.step, report.loss, report.grad_norm] for number, report in states.reports]
        parts = PARTS.get(cell.name, 1)
        thirds = states.weights[parts - 1 :: parts]
        art = np.stack([self.arena.draw(weights, prompts, cell.seed) for weights in thirds])
        return {"art": art, "losses": np.array(losses)}

    # ---- what is chosen

    def method(self, cell: Cell) -> Method:
        sft_rate = self.rate(cell.pairs, "SFT") if "from SFT" in cell.name else 0.0
        rate = (cell.rate, cell.rate / SLOWED[cell.name]) if cell.name in SLOWED else cell.rate
        parts, sizes = PARTS.get(cell.name, 1), self.sizes
        steps, rounds = sizes.steps // parts, (cell.thirds or sizes.rounds) * parts
        return replace(METHODS[cell.name], rate=rate, sft_rate=sft_rate, steps=steps, rounds=rounds)

    def search(self, kind: str, name: str, make: bool = True, wait: bool = True) -> dict[float, Worth]:
        """What the pictures of each rate are worth: upwards until one far above the best is worse, then down from the lowest.

        make: what is missing, or else leave it out. wait: for a rate that another process is at, or else end there.
        """
        worth: dict[float, Worth] = {}
        name = RATE_OF.get(name, name)
        for rate in self.sizes.rates:
            found = self.worth(searched(kind, name, rate, self.sizes), make, wait)
            if found is not None:
                worth[rate] = found
            if (found is None and make) or (worth and rate >= FAR * max(best_in_mean(worth), best_kept(worth)[0])):
                break
        for _ in range(HALVINGS):
            if not worth or min(worth) != best_in_mean(worth):
                break
            rate = min(worth) / 2
            found = self.worth(searched(kind, name, rate, self.sizes), make, wait)
            if found is None:
                break
            worth[rate] = found
        return dict(sorted(worth.items()))

    def worth(self, cell: Cell, make: bool, wait: bool) -> Worth | None:
        """None where the pictures are not there."""
        there = self.trained(cell, wait) if make else self.is_there(cell.file)
        if there and cell.file not in self.worths:
            path = self.results / cell.file
            seen = np.load(path)["seen"] if path.exists() else seen_by_third(self.art(cell.file), self.search_prompts)
            self.worths[cell.file] = tuple(float(utility(third).mean()) for third in seen)
        return self.worths.get(cell.file)

    def rate(self, kind: str, name: str, make: bool = True) -> float | None:
        """The best of the search in the mean of its thirds, or its best third's; None where nothing of it is there."""
        worth = self.search(kind, name, make)
        if not worth:
            return None
        return best_kept(worth)[0] if name in SLOWED else best_in_mean(worth)

    def at_best(self, kind: str, noise: float, name: str, make: bool = True) -> tuple[Cell, int] | None:
        """The training (seed 0) and the third of it, from 0, at which the method is kept; None without anything of its search.

        No longer than to that third, but where all thirds of it are trained anyway, by the rate that is the best in the mean.
        """
        worth = self.search(kind, name, make)
        if not worth:
            return None
        rate, third = best_kept(worth)
        thirds = None if rate == best_in_mean(worth) else third + 1
        return Cell(kind, noise, self.sizes.real, name, rate, 0, thirds), third

    # ---- the judge that learns

    @cached_property
    def preference_model(self) -> tuple[PreferenceModel, dict[str, float]]:
        """The judge, learnt once, from the pictures that the search has drawn by then; how often it agrees with people."""
        path = self.results / "preference.safetensors"
        with held(self.folder / "locks" / path.name, wait=True):
            if not path.exists():
                pools = [self.art(pool.name) for pool in sorted(self.folder.glob(f"*-{SEARCH_SEED}.npz"))]
                save_preference_model(path, *self._train_preference(pools))
        return load_preference_model(path)

    def _train_preference(self, pools: list[np.ndarray]) -> tuple[PreferenceModel, dict[str, float]]:
        art = np.concatenate(pools)  # [states, P, 32, 32, 3]
        by_caption = {prompt: art[:, place] for place, prompt in enumerate(self.search_prompts)}
        model, agreement = train_preference_model(choices(by_caption, self.sizes.choices, 0))
        return model, {"trainings": len(pools) - 1} | agreement  # one of the pools is the base's


def best_in_mean(worth: dict[float, Worth]) -> float:
    return max(worth, key=lambda rate: np.mean(worth[rate]))


def best_kept(worth: dict[float, Worth]) -> tuple[float, int]:
    """(rate, third) of the highest worth; the fewer steps where two are equal."""
    places = [(rate, third) for rate in worth for third in range(len(worth[rate]))]
    return max(places, key=lambda place: (worth[place[0]][place[1]], -place[1]))


def searched(kind: str, name: str, rate: float, sizes: Sizes) -> Cell:
    return Cell(kind, SEARCHED_AT, sizes.real, name, rate, SEARCH_SEED)


# ---- the work ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Which trainings: every method on every kind of pairs at every share of wrong labels; DPO on other numbers of pairs.

    kept_at_best: by the rate of its best third, in place of the best in the mean.
    """

    pairs: tuple[str, ...] = ("independent",)
    noises: tuple[float, ...] = (SEARCHED_AT,)
    methods: tuple[str, ...] = ("DPO", "SPIN")
    reals: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    kept_at_best: bool = False

    def cells(self, study: Study) -> Iterator[Cell]:
        """The most informative first: one training seed over everything, then the others."""
        for kind in self.pairs:
            for seed in self.seeds:
                for noise in self.noises:
                    for name in self.methods:
                        if self.kept_at_best:
                            yield replace(study.at_best(kind, noise, name)[0], seed=seed)
                        else:
                            yield Cell(kind, noise, study.sizes.real, name, study.rate(kind, name), seed)
        for seed in self.seeds:
            for real in self.reals:
                yield Cell("independent", SEARCHED_AT, real, "DPO", study.rate("independent", "DPO"), seed)


WHOLE = (
    Part(methods=tuple(METHODS), reals=(16, 256)),
    Part(noises=NOISES),
    Part(methods=KEPT, kept_at_best=True),
    Part(noises=NOISES, kept_at_best=True),
    Part(pairs=("same-scene",), noises=(0.0, SEARCHED_AT)),
)


def work(study: Study, parts: Sequence[Part]) -> None:
    """Trains what is missing; what another process is at is left to it at first, and waited for in the end."""
    study.base(SEARCH_SEED)
    searches = dict.fromkeys(pair for part in parts for pair in itertools.product(part.pairs, part.methods))
    for wait in (False, True):
        for kind, name in searches:
            study.search(kind, name, wait=wait)
    for kind, name in searches:
        print(kind, name, told(study.search(kind, name)), flush=True)
    for seed in sorted({seed for part in parts for seed in part.seeds}):
        study.base(seed)
    for wait in (False, True):
        for cell in (cell for part in parts for cell in part.cells(study)):
            study.trained(cell, wait)


def told(worth: dict[float, Worth]) -> str:
    """Each rate with the mean, and in brackets what each third is worth."""
    return "; ".join(
        f"{rate:g}: {np.mean(w):.3f} ({', '.join(f'{third:.3f}' for third in w)})" for rate, w in worth.items()
    )


def parse_options(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small: does it all run?")
    chosen = parser.add_argument_group("a part of the whole, where one of these is given")
    chosen.add_argument("--pairs", nargs="+", choices=PAIRS)
    chosen.add_argument("--noises", nargs="+", type=float, help="shares of wrong labels")
    chosen.add_argument("--methods", nargs="+", choices=METHODS)
    chosen.add_argument("--reals", nargs="+", type=int, help="other numbers of pairs, for DPO alone")
    chosen.add_argument("--kept-at-best", action="store_true", help="by the rate of each method's best third")
    parser.add_argument("--seeds", nargs="+", type=int, default=Part.seeds, help="training seeds")
    parser.add_argument("--rates", nargs="+", type=float, default=Sizes().rates, help="learning rates to choose from")
    parser.add_argument("--tables", action="store_true", help="only the documents of what is there")
    parser.add_argument("--weights", type=Path, default=BASE)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "output" / "spin_evidence", help="folder of the raw results"
    )
    parser.add_argument(
        "--docs", type=Path, help="folder for results, tables, figures and pictures (default: --output)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser.parse_args(arguments)


def parts_of(options) -> list[Part]:
    """One part, as the options name it; the whole where they name none."""
    named = {name: getattr(options, name) for name in ("pairs", "noises", "methods", "reals")}
    given = {name: tuple(values) for name, values in named.items() if values is not None}
    if options.kept_at_best:
        given["kept_at_best"] = True
    return [replace(part, seeds=tuple(options.seeds)) for part in ([Part(**given)] if given else WHOLE)]


def main() -> None:
    from .spin_documents import write_documents

    options = parse_options()
    folder = options.output / ("quick" if options.quick else "full")
    sizes = QUICK if options.quick else replace(Sizes(), rates=tuple(sorted(options.rates)))
    docs = options.docs or folder
    study = Study(options.weights, sizes, folder, docs / "results")
    if not options.tables:
        work(study, parts_of(options))
    found = write_documents(study, docs)
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
