"""Does self-play do what the paper claims? python -m vico_spin.benchmarks.spin_evidence [--quick] [--methods M …] [--ablations] [--json]

In the Sprite World, from its base, whose taste is mixed, with few finely drawn pictures as real data: supervised
fine-tuning, Diffusion-DPO (fine over crude drawings of the same scenes), the same of close pairs (the rejected drawing
is finer than the base's too, as in Pick-a-Pic, whose pictures are of stronger models than the one that is trained) and
SPIN in three rounds, at equal numbers of gradient steps and of real pictures. Each method has the rate that drew the
finest on other prompts, of those that followed them no worse than 3 points below the base; SPIN's must besides not pass
the real pictures' own taste in its first round. Taste, following and Fréchet distance are read by the world's
classifier; a win is a picture drawn more finely than the other model's of the same prompt and seed, its interval a
bootstrap over prompts.

Every result is kept in --output as soon as it is there, and found again: a run can be cut, and several processes can
take a method each (--methods). The tables, curves and pictures are made when all methods are there.
"""

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy
from PIL import Image

from ..intake import write_atomically
from ..scores import win_rate, win_rate_interval
from ..scripts.get_host import ROOT
from ..scripts.sprite_world_card import BASE
from ..sprite_world.pictures import evaluation_prompts, show
from .grid import named_rows
from .spin_arena import FAIR, FINE, Arena, Method

METHODS = {
    "SFT": Method("sft", 0),
    "DPO": Method("dpo", 0),
    "DPO of close pairs": Method("dpo", 0, rejected=FAIR),
    "SPIN": Method("spin", 0),
}
CLAIMED_FROM = {"SFT": 1, "DPO": 2, "DPO of close pairs": 2}  # the round from which the paper has SPIN above it
FOLLOWING_LOSS = 0.03
COLUMNS = ("taste", "followed", "class_word", "frechet")


@dataclass(frozen=True)
class Sizes:
    """How much is drawn and trained. quick shows that it runs; the tables need the whole."""

    real: int = 64
    batch: int = 16
    steps: int = 50
    rounds: int = 3
    prompts: int = 100
    search_prompts: int = 40
    sampling_steps: int = 15
    seeds: int = 2
    rates: tuple[float, ...] = (3e-5, 5e-5, 7e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 3e-3)


QUICK = Sizes(
    real=16, batch=4, steps=4, rounds=2, prompts=12, search_prompts=8, sampling_steps=6, seeds=1, rates=(1e-4,)
)


def ablations(chosen: Method) -> dict[str, Method]:
    """What users ask about, each beside the chosen setting, for one round."""
    one = replace(chosen, rounds=1)
    return {
        "as chosen": one,
        "beta × 1/4": replace(one, beta=one.beta / 4),
        "beta × 4": replace(one, beta=one.beta * 4),
        "half the steps": replace(one, steps=one.steps // 2),
        "twice the steps": replace(one, steps=one.steps * 2),
        "opponent at CFG 1": replace(one, cfg=1.0),
        "opponent at CFG 5": replace(one, cfg=5.0),
        "noise not shared": replace(one, share_noise=False),
        "LoRA of rank 16, 10 × the rate": replace(one, lora_rank=16, rate=one.rate * 10),
    }


class Study:
    """Results by name, each in its file; the arena is only entered for what is missing."""

    def __init__(self, weights: Path, sizes: Sizes, folder: Path):
        self.sizes, self.folder = sizes, folder
        self.arena = Arena(weights, sizes.real, sizes.batch, sizes.sampling_steps)
        self.prompts = evaluation_prompts(sizes.prompts, seed=7)
        self.search_prompts = evaluation_prompts(sizes.search_prompts, seed=11)
        self._claim_folder()

    def _claim_folder(self) -> None:
        named = ("seeds", "rates")  # in the results' names: more of them can be added
        sizes = {name: value for name, value in asdict(self.sizes).items() if name not in named}
        made_from = json.dumps({"base": self.arena.base_hash, **sizes})
        path = self.folder / "plan.json"
        if path.exists() and path.read_text() != made_from:
            raise SystemExit(
                f"{self.folder} holds another plan's or base's results: name another --output, or delete it."
            )
        write_atomically(path, lambda partial: partial.write_text(made_from))

    def result(self, name: str, make) -> dict:
        """The named result: from its file, or made and kept."""
        path = self.folder / f"{file_name(name)}.json"
        if not path.exists():
            made = make()
            write_atomically(path, lambda partial: partial.write_text(json.dumps(made)))
            print(name, told(made[-1] if isinstance(made, list) else made), flush=True)
        return json.loads(path.read_text())

    def base(self, seed: int) -> dict:
        return self.result(f"base-{seed}", lambda: self.arena.judge(self.arena.base, self.prompts, seed))

    def trained(self, name: str, method: Method, seed: int) -> list[dict]:
        """What is judged after each round."""
        name = f"{name}-{method.rate:g}-{seed}"

        def make() -> list[dict]:
            rounds = self.arena.train(method, seed, self.folder / "runs" / file_name(name))
            return [self.arena.judge(weights, self.prompts, seed) for weights in rounds]

        return self.result(name, make)

    def searched(self, name: str, method: Method) -> dict:
        name = f"search-{name}-{method.rate:g}"

        def make() -> dict:
            [weights] = self.arena.train(method, 99, self.folder / "runs" / file_name(name))
            return self.arena.judge(weights, self.search_prompts, 99)

        return self.result(name, make)

    def chosen(self, name: str) -> Method:
        """The finest drawing on the search's prompts among the rates, from the lowest up to where following is lost.

        SPIN's first round must moreover not pass the real pictures' own taste: the game pulls towards the data, so a
        player that has gone beyond them comes back in the next round.
        """
        base = self.result("search-base", lambda: self.arena.judge(self.arena.base, self.search_prompts, 99))
        taste: dict[Method, float] = {}
        for rate in self.sizes.rates:
            method = replace(METHODS[name], rate=rate, steps=self.sizes.steps, rounds=1)
            found = self.searched(name, method)
            if found["followed"] < base["followed"] - FOLLOWING_LOSS:
                break
            taste[method] = numpy.mean(found["taste"])
        fit = [method for method in taste if method.kind != "spin" or taste[method] <= numpy.mean(FINE)]
        if not fit:
            raise SystemExit(f"no rate fits {name}: all of them lose the prompt or overshoot; try smaller ones")
        return replace(max(fit, key=taste.get), rounds=self.sizes.rounds)

    def methods(self, names: tuple[str, ...]) -> dict[str, Method]:
        """Searches and trains these; returns what was chosen."""
        chosen = {name: self.chosen(name) for name in names}
        for seed in range(self.sizes.seeds):
            self.base(seed)
            for name, method in chosen.items():
                self.trained(name, method, seed)
        return chosen

    def over_seeds(self, results: list[dict]) -> dict:
        """One model under several training seeds: tastes [P, S] side by side, the rest as means."""
        means = {name: float(numpy.mean([found[name] for found in results])) for name in COLUMNS}
        return means | {"tastes": numpy.array([found["taste"] for found in results]).T}

    def models(self, chosen: dict[str, Method]) -> dict[str, list[dict]]:
        """Of the base its one state, of each method that after each round: {"base": [·], "SFT": [·, ·, ·], …}."""
        seeds = range(self.sizes.seeds)
        found = {"base": [self.over_seeds([self.base(seed) for seed in seeds])]}
        for name, method in chosen.items():
            runs = [self.trained(name, method, seed) for seed in seeds]
            found[name] = [self.over_seeds(list(states)) for states in zip(*runs, strict=True)]
        return found


def file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "_" for c in name)


def row_name(name: str, number: int, steps: int) -> str:
    """Of the state after so many rounds of so many steps."""
    return f"{name} round {number} ({number * steps} steps)" if name == "SPIN" else f"{name} ({number * steps} steps)"


def rows_of(models: dict[str, list[dict]], steps: int) -> dict[str, dict]:
    """Every state by its row's name."""
    rows = {"base": models["base"][0]}
    for name in METHODS:
        rows |= {row_name(name, number, steps): state for number, state in enumerate(models[name], start=1)}
    return rows


def told(found: dict) -> str:
    return f"taste {numpy.mean(found['taste']):.3f}, followed {found['followed']:.3f}, Fréchet {found['frechet']:.1f}"


def compared(a: dict, b: dict) -> dict:
    """a's wins over b with their interval."""
    low, high = win_rate_interval(a["tastes"], b["tastes"])
    return {"win": win_rate(a["tastes"], b["tastes"]), "low": low, "high": high}


def as_cells(found: dict) -> str:
    return f"{found['win']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def as_markdown(models: dict[str, dict]) -> str:
    lines = [
        "| model | taste | prompt | class word | Fréchet | wins over the base |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in models.items():
        wins = "" if name == "base" else as_cells(compared(found, models["base"]))
        followed, word = f"{found['followed']:.3f}", f"{found['class_word']:.3f}"
        lines.append(f"| {name} | {found['taste']:.3f} | {followed} | {word} | {found['frechet']:.1f} | {wins} |")
    return "\n".join(lines)


def duels(models: dict[str, list[dict]], steps: int) -> dict[str, dict[str, dict]]:
    """SPIN against each baseline at equal steps, round by round: {baseline: {duel: wins}}."""
    rounds = list(enumerate(models["SPIN"], start=1))
    return {
        other: {
            f"{row_name('SPIN', number, steps)} over {row_name(other, number, steps)}": compared(
                spin, models[other][number - 1]
            )
            for number, spin in rounds
        }
        for other in METHODS
        if other != "SPIN"
    }


def verdict(found: dict[str, dict[str, dict]]) -> dict[str, bool]:
    """The paper's claims: above SFT from round 1, above DPO from round 2, intervals apart from one half."""
    above = {other: [duel["low"] > 0.5 for duel in by_round.values()] for other, by_round in found.items()}
    return {
        f"SPIN above {other} from round {CLAIMED_FROM[other]}": all(rounds[CLAIMED_FROM[other] - 1 :])
        for other, rounds in above.items()
    }


def draw_curves(models: dict[str, list[dict]], sizes: Sizes, path: Path) -> None:
    """Taste and wins over the base by the number of steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (taste, wins) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    steps = [sizes.steps * number for number in range(sizes.rounds + 1)]
    [base] = models["base"]
    for name in METHODS:
        taste.plot(steps, [state["taste"] for state in (base, *models[name])], marker="o", label=name)
        against = [compared(state, base) for state in models[name]]
        spread = [[a["win"] - a["low"] for a in against], [a["high"] - a["win"] for a in against]]
        wins.errorbar(steps[1:], [a["win"] for a in against], yerr=spread, marker="o", capsize=3, label=name)
    wins.axhline(0.5, color="grey", linewidth=0.8)
    taste.set(xlabel="gradient steps", ylabel="taste")
    wins.set(xlabel="gradient steps", ylabel="wins over the base")
    taste.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_pictures(rows: dict[str, dict], path: Path) -> None:
    """The same prompts and noise, a row a model."""
    shown = {name: show(numpy.array(found["shown"], dtype=numpy.uint8)) for name, found in rows.items()}
    strips = {name: Image.fromarray(numpy.concatenate(list(pictures), 1)) for name, pictures in shown.items()}
    named_rows(strips, label=150).save(path, optimize=True)


def write_documents(study: Study, chosen: dict[str, Method], docs: Path) -> dict:
    """Table, curves and pictures into docs; returns all numbers."""
    sizes, models = study.sizes, study.models(chosen)
    rows, against = rows_of(models, sizes.steps), duels(models, sizes.steps)
    table = "\n".join([as_markdown(rows), "", "| duel | wins |", "| --- | --- |"])
    for duel in against.values():
        table += "".join(f"\n| {name} | {as_cells(wins)} |" for name, wins in duel.items())
    said = ", ".join(f"{name} {method.rate:g}" for name, method in chosen.items())
    text = (
        f"{table}\n\n{sizes.real} real pictures, {sizes.batch} pairs a step, {sizes.prompts} prompts, {sizes.seeds} training seeds; "
        f"pictures by Euler, {sizes.sampling_steps} steps; beta {chosen['SPIN'].beta:g}. Rates, chosen on other prompts: {said}.\n"
    )
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "spin_evidence.md").write_text(text, encoding="utf-8")
    draw_curves(models, sizes, docs / "spin_evidence.png")
    shown = {"base": study.base(0)} | {
        row_name(name, sizes.rounds, sizes.steps): study.trained(name, method, 0)[-1] for name, method in chosen.items()
    }
    draw_pictures(shown, docs / "spin_evidence_pictures.png")
    print(text)
    plain = {name: {k: v for k, v in state.items() if k != "tastes"} for name, state in rows.items()}
    return {"models": plain, "duels": against, "claims": verdict(against)}


def write_ablations(study: Study, chosen: Method, docs: Path) -> None:
    """A row a variant of SPIN's first round, one seed."""
    base = study.over_seeds([study.base(0)])
    rows = {"base": base}
    for name, method in ablations(chosen).items():
        rows[name] = study.over_seeds(study.trained(f"ablation-{name}", method, 0))
    text = f"{as_markdown(rows)}\n\nOne round at rate {chosen.rate:g}, one seed.\n"
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "spin_ablations.md").write_text(text, encoding="utf-8")
    print(text)


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small: does it all run?")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=tuple(METHODS), help="only these; no table")
    parser.add_argument("--ablations", action="store_true", help="SPIN's variants instead, one round each")
    parser.add_argument("--weights", type=Path, default=BASE)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "output" / "spin_evidence", help="folder of the raw results"
    )
    parser.add_argument("--docs", type=Path, help="folder for tables, curves and pictures (default: --output)")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    folder = options.output / ("quick" if options.quick else "full")
    study = Study(options.weights, QUICK if options.quick else Sizes(), folder)
    if options.ablations:
        write_ablations(study, study.chosen("SPIN"), options.docs or folder)
        return
    chosen = study.methods(tuple(options.methods))
    if chosen.keys() != METHODS.keys():
        return
    found = write_documents(study, chosen, options.docs or folder)
    for claim, holds in found["claims"].items():
        print(f"{'holds' if holds else 'DOES NOT HOLD'}: {claim}")
    if options.json:
        print(json.dumps(found | {"chosen": {kind: asdict(method) for kind, method in chosen.items()}}))


if __name__ == "__main__":
    main()
