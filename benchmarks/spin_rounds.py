"""Why does self-play not rise in every round? python -m vico_spin.benchmarks.spin_rounds [--quick] [--ablations] [--docs docs/spin]

Six rounds in the Sprite World on pairs as people make them (see spin_evidence; their winners are the real data), as a user
would play them and with one thing changed: pictures that stay finer than the opponent's, more of them, smaller rates after
round 1, fewer steps, the safeguard. Beside the taste of what
the player draws stand its opponent's, the four errors, the margin z and its gradient weight, the drift, the two sides'
gradients apart, and whether a round's change of the weights goes back on the last one's. --ablations: what users ask about,
one round each.

What was measured of a variant is kept in the folder rounds beside the documents, to be committed, and found again; several
processes share the work of one --output.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..scripts.get_host import ROOT
from ..scripts.sprite_world_card import BASE
from ..spin_core.batches import PairBatch
from ..spin_core.curves import told_apart_by
from ..spin_core.objectives import Errors, pair_logits, squared_error
from ..spin_core.steps import noised_pair, predict_both
from ..sprite_world.pictures import chosen_pictures, evaluation_prompts
from ..train_core import keyed_generator
from .kept import claim, held, save_arrays
from .spin_arena import Arena, Method, States, UNet, Weights
from .spin_documents import new_figure, table
from .spin_judges import frechet
from .spin_people import Pairs, art_of, pairs, see

REAL, NOISE, SEED = 64, 0.2, 0
PLAYED = Method("spin", 7e-5, rounds=6)


@dataclass(frozen=True)
class Variant:
    """A way to play. real: how many pictures are learnt from; finest: drawn with taste 1, in place of what people chose."""

    method: Method = PLAYED
    real: int = REAL
    finest: bool = False

    def learnt_from(self) -> Pairs:
        if not self.finest:
            return pairs("independent", SEED, self.real, NOISE)
        drawn = list(islice(chosen_pictures(100 + SEED), self.real))
        return Pairs([picture.caption() for picture in drawn], art_of(drawn), art_of(drawn))


VARIANTS = {
    "as played": Variant(),
    "the finest pictures": Variant(finest=True),
    "512 pictures": Variant(real=512),
    "a third of the steps": Variant(replace(PLAYED, steps=17)),
    "safeguard": Variant(replace(PLAYED, safeguard=0.0)),
    "rate halved each round": Variant(replace(PLAYED, rate=tuple(PLAYED.rate / 2**number for number in range(6)))),
    "quarter rate from round 2": Variant(replace(PLAYED, rate=(PLAYED.rate, PLAYED.rate / 4))),
}
ONE = replace(PLAYED, rounds=1)
ABLATIONS = {
    "one round as played": Variant(ONE),
    "beta × 1/4": Variant(replace(ONE, beta=ONE.beta / 4)),
    "beta × 4": Variant(replace(ONE, beta=ONE.beta * 4)),
    "half the steps": Variant(replace(ONE, steps=ONE.steps // 2)),
    "twice the steps": Variant(replace(ONE, steps=ONE.steps * 2)),
    "opponent at CFG 1": Variant(replace(ONE, cfg=1.0)),
    "opponent at CFG 5": Variant(replace(ONE, cfg=5.0)),
    "noise not shared": Variant(replace(ONE, share_noise=False)),
    "LoRA of rank 16, 10 × the rate": Variant(replace(ONE, lora_rank=16, rate=ONE.rate * 10)),
}
SHOWN = (  # of the step's metrics
    "error_policy_real",
    "error_policy_generated",
    "error_reference_real",
    "error_reference_generated",
    "z",
    "weight",
    "drift",
)
PROBED = 32  # pairs that gradients are taken over


def run(arena: Arena, method: Method, learnt_from: Pairs, prompts: list[str], folder: Path) -> dict[str, np.ndarray]:
    """Taste and Fréchet distance of every state [R + 1], taste of every opponent [R], metrics [R, steps, 7], gradients, turns."""
    states = arena.train(method, learnt_from, SEED, folder)
    weights = [arena.base, *states.weights]
    opponents = [arena.draw(w, learnt_from.captions, 50 + SEED, method.cfg) for w in weights[:-1]]
    art = [arena.draw(w, prompts, SEED) for w in weights]
    return {
        "taste": np.array([mean_taste(one, prompts) for one in art]),
        "frechet": np.array([frechet(one) for one in art]),
        "opponents_taste": np.array([mean_taste(one, learnt_from.captions) for one in opponents]),
        "metrics": metrics(states, method.rounds),
        "gradients": np.array(
            [probed(arena, learnt_from, opponents[k], weights[k], weights[k : k + 2]) for k in range(method.rounds)]
        ),
        "turns": np.array(turns(weights)),
    }


def mean_taste(art: np.ndarray, captions: list[str]) -> float:
    return float(see(art, captions)[:, 0].mean())


def metrics(states: States, rounds: int) -> np.ndarray:
    by_round = [[report for number, report in states.reports if number == k] for k in range(1, rounds + 1)]
    found = [[[report.metrics[name] for name in SHOWN] for report in reports] for reports in by_round]
    return np.array(found, np.float32)


def turns(weights: list[Weights]) -> list[float]:
    """Cosine between each round's change of the weights and the last round's: below 0, it goes back."""
    flat = [torch.cat([tensor.flatten().double() for tensor in w.values()]) for w in weights]
    moved = [after - before for before, after in pairwise(flat)]
    return [torch.cosine_similarity(a, b, dim=0).item() for a, b in pairwise(moved)]


def probed(arena: Arena, learnt_from: Pairs, drawn: np.ndarray, opponent: Weights, players: list[Weights]) -> list:
    """For the player at a round's start and end: norms of the winner's and the loser's gradient, and their cosine."""
    captions, generator = learnt_from.captions[:PROBED], keyed_generator(SEED, "probe")
    real, other = arena.latents(learnt_from.winners[:PROBED]), arena.latents(drawn[:PROBED])
    noise = torch.randn(real.shape, generator=generator)
    t = torch.randint(1000, (len(captions),), generator=generator)
    batch = PairBatch(real, other, arena.text(captions), t, noise, noise)
    with torch.no_grad():
        arena.network.load_state_dict(opponent)
        reference = errors(arena, batch)
    return [sides(arena, batch, reference, weights) for weights in players]


def errors(arena: Arena, batch: PairBatch) -> tuple[Tensor, Tensor]:
    """Of the network as it is, on the real and on the generated pictures."""
    model = UNet(arena.network)
    real, other, targets = noised_pair(model, batch)
    predictions = predict_both(model, real, other, batch.t, batch.context)
    return tuple(squared_error(p, y) for p, y in zip(predictions, targets, strict=True))


def sides(arena: Arena, batch: PairBatch, reference: tuple[Tensor, Tensor], weights: Weights) -> list[float]:
    """The loss's gradient is the winner's minus the loser's, each weighted by sigma(-z)."""
    arena.network.load_state_dict(weights)
    parameters = list(arena.network.requires_grad_(True).parameters())
    winner, loser = errors(arena, batch)
    weight = torch.sigmoid(-pair_logits(Errors(winner, loser, *reference), PLAYED.beta)).detach()
    gradients = [torch.autograd.grad((weight * e).mean(), parameters, retain_graph=True) for e in (winner, loser)]
    arena.network.requires_grad_(False)
    a, b = (torch.cat([g.flatten() for g in side]) for side in gradients)
    return [a.norm().item(), b.norm().item(), torch.cosine_similarity(a, b, dim=0).item()]


# ---- documents -----------------------------------------------------------------------------------------------------


def rows_of(name: str, found: dict[str, np.ndarray], aim: float) -> list[tuple]:
    """A row a round: what the player draws and what its opponent drew, errors from first to last steps, gradients."""
    rows = []
    for k, metric in enumerate(found["metrics"]):
        early, late = (dict(zip(SHOWN, metric[part].mean(0), strict=True)) for part in (slice(10), slice(-10, None)))
        real, generated = (early[f"error_reference_{side}"] for side in ("real", "generated"))
        drift = [late[f"error_policy_{s}"] - late[f"error_reference_{s}"] for s in ("real", "generated")]
        (w0, l0, c0), (w1, l1, c1) = found["gradients"][k]
        rows.append(
            (
                name if k == 0 else "",
                k + 1,
                f"{aim:.3f}",
                f"{found['opponents_taste'][k]:.3f}",
                f"{found['taste'][k + 1]:.3f}",
                f"{found['frechet'][k + 1]:.0f}",
                f"{real:.4f}, {generated:.4f}",
                f"{drift[0]:+.4f}, {drift[1]:+.4f}",
                f"{late['z']:.1f}",
                f"{late['weight']:.2f}",
                told_apart_by(metric[:, SHOWN.index("weight")].tolist()) or "",
                f"{late['drift']:.4f}",
                f"{l0 / w0:.2f} ({c0:.2f})",
                f"{l1 / w1:.2f} ({c1:.2f})",
                "" if k == 0 else f"{found['turns'][k - 1]:+.2f}",
            )
        )
    return rows


HEAD = (
    "variant",
    "round",
    "real pictures' taste",
    "opponent's taste",
    "player's taste",
    "Fréchet",
    "opponent's error: real, generated",
    "player's beyond it, last 10 steps: real, generated",
    "z",
    "weight",
    "told apart by step",
    "drift",
    "loser's / winner's gradient (cosine) at the start",
    "at the end",
    "turn",
)


@cache
def aim_of(variant: Variant) -> float:
    """The taste of the real pictures."""
    learnt_from = variant.learnt_from()
    return mean_taste(learnt_from.winners, learnt_from.captions)


def towards(found: dict[str, np.ndarray], aim: float) -> str:
    """In how many rounds the player rises from an opponent below the real pictures' taste, or falls from one above it."""
    goes = (np.diff(found["taste"]) > 0) == (found["opponents_taste"] < aim)
    return f"{goes.sum()} of {len(goes)}"


def write_table(found: dict[str, dict], prompts: int, path: Path) -> None:
    aims = {name: aim_of((VARIANTS | ABLATIONS)[name]) for name in found}
    rows = [rows_of(name, one, aims[name]) for name, one in found.items()]
    led = ", ".join(f"{name} {towards(one, aims[name])}" for name, one in found.items())
    text = table(HEAD, [row for part in rows for row in part]) + (
        f"\n\n{REAL} pairs at label noise {NOISE:g}, where nothing else is said; one training seed, {prompts} "
        f"prompts, rate {PLAYED.rate:g}, beta {PLAYED.beta:g}, {PLAYED.steps} steps a round. The player's taste at CFG 5, the "
        "opponent's at its own CFG (3, where nothing else is said). turn: cosine of the change of the weights with the last "
        "round's. told apart: the mean weight of five steps is under 0.1. Rounds in which the player rises from an "
        f"opponent below the real pictures' taste, or falls from one above it: {led}.\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(text)


def draw(found: dict[str, dict], path: Path) -> None:
    """Taste by round for each variant; of the first one, how far the player's errors leave the opponent's."""
    plt, figure, [(tastes, errs)] = new_figure(2)
    for name, one in found.items():
        tastes.plot(one["taste"], marker="o", label=name)
    tastes.axhline(aim_of(Variant()), color="grey", linewidth=0.8)
    tastes.set(xlabel="round", ylabel="taste (grey: of what people chose)")
    tastes.legend(fontsize=7)
    metric = next(iter(found.values()))["metrics"]  # [R, steps, 7]
    steps = np.arange(metric.shape[0] * metric.shape[1]) / metric.shape[1]
    for side in ("real", "generated"):
        player, opponent = (SHOWN.index(f"error_{who}_{side}") for who in ("policy", "reference"))
        left = (metric[:, :, player] - metric[:, :, opponent]).ravel()
        errs.plot(steps, np.convolve(left, np.ones(5) / 5, mode="same"), label=f"{side} pictures")
    errs.axhline(0, color="grey", linewidth=0.8)
    errs.set(xlabel="round, as played", ylabel="player's error minus its opponent's")
    errs.legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small: does it all run?")
    parser.add_argument("--ablations", action="store_true", help="one round of each ablation instead")
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS, *ABLATIONS], help="only these")
    parser.add_argument("--tables", action="store_true", help="only the documents of what is there")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "spin_rounds", help="folder of the runs")
    parser.add_argument("--docs", type=Path, help="folder for what is kept, table and figure (default: --output)")
    options = parser.parse_args()
    folder, variants = options.output / ("quick" if options.quick else "full"), VARIANTS
    if options.ablations:
        variants = ABLATIONS
    docs, prompts, steps = options.docs or folder, 8 if options.quick else 100, 6 if options.quick else 10
    kept = docs / "rounds"
    claim(
        kept,
        BASE,
        {"prompts": prompts, "sampling_steps": steps, "real": REAL, "noise": NOISE, "played": asdict(PLAYED)},
    )
    arena = cache(lambda: Arena(BASE, 4 if options.quick else 16, steps))
    for wait in (False, True):
        for name in () if options.tables else options.variants or variants:
            make(name, options.quick, arena, prompts, kept, folder, wait)
    paths = {name: kept / file_of(name) for name in variants}
    found = {name: dict(np.load(path)) for name, path in paths.items() if path.exists()}
    if not found:
        raise SystemExit(f"{kept} holds none of these yet: run it without --tables.")
    write_table(found, prompts, docs / ("spin_ablations.md" if options.ablations else "spin_rounds.md"))
    if not options.ablations:
        draw(found, docs / "spin_rounds.png")


def file_of(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name) + ".npz"


def make(
    name: str, quick: bool, arena: Callable[[], Arena], prompts: int, kept: Path, folder: Path, wait: bool
) -> None:
    """Plays the variant where it is not there; one that another process is at only when it waits."""
    path, variant = kept / file_of(name), (VARIANTS | ABLATIONS)[name]
    with held(folder / "locks" / path.name, wait) as mine:
        if mine and not path.exists():
            if quick:
                method = replace(variant.method, steps=11, rounds=min(variant.method.rounds, 2))
                variant = replace(variant, method=method, real=REAL)
            drawn_for = evaluation_prompts(prompts, seed=11)
            arrays = run(arena(), variant.method, variant.learnt_from(), drawn_for, folder / "runs" / path.stem)
            save_arrays(path, arrays)
            print(name, flush=True)


if __name__ == "__main__":
    main()
