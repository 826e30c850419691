"""Does self-play do what the paper claims? In the Sprite World: python -m benchmarks.spin_evidence [--quick]

From the world's base, whose taste is mixed, with few finely drawn pictures as real data: supervised
fine-tuning, Diffusion-DPO (fine over crude drawings of the same scenes), and SPIN rounds 1 to 3, at
equal numbers of gradient steps and of real pictures. Each method's rate (and beta) is the one that drew
the finest on prompts of its own (--search), at no loss of following. Taste, prompt following and Fréchet
distance are read by the world's own classifier; the win rate is the share of prompts on which a picture
is drawn more finely than the base's with the same seed, with its bootstrap interval over prompts.
"""

import argparse
import copy
import itertools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from torch import Tensor

from scores import win_rate, win_rate_interval
from scripts.sprite_world_card import BASE, World
from spin_core.batches import Corpus
from spin_core.game import Opponent, Progress, RoundSettings, Run, play, train_baseline
from spin_core.players import FullPlayer
from spin_core.store import store_key
from sprite_world.measure import accuracies, features, frechet_distance, measure, to_art
from sprite_world.pictures import chosen_pictures, evaluation_prompts, render, show
from train_core import LocalEngine, NoiseSchedule, scaled_linear_alphas_cumprod

ROUNDS = 3
FINE, CRUDE = (0.8, 1.0), (0.0, 0.2)


@dataclass(frozen=True)
class Sizes:
    """How much is drawn and trained. quick shows that it runs and which way it points; the table needs the whole."""

    real: int
    steps: int
    batch: int
    prompts: int
    search_prompts: int
    seeds: int
    sampling_steps: int
    rates: tuple[float, ...]
    betas: tuple[float, ...]


WHOLE = Sizes(128, 200, 16, 200, 60, 3, 25, (3e-6, 1e-5, 3e-5, 1e-4), (500.0, 2000.0, 5000.0))
QUICK = Sizes(32, 20, 8, 40, 16, 1, 10, (1e-5, 3e-5), (2000.0,))


class UNet:
    """The world's network as a Denoiser."""

    prediction = "epsilon"

    def __init__(self, module: torch.nn.Module):
        self.module = module
        self.schedule = NoiseSchedule.from_alphas_cumprod(scaled_linear_alphas_cumprod())

    def predict(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self.module(x_t, t.float(), context=context)


class Arena:
    """The world, its base weights, the data, and the measures."""

    def __init__(self, weights: Path, sizes: Sizes):
        self.world, self.sizes = World(weights), sizes
        self.network = self.world.model.model.diffusion_model
        self.base = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.texts: dict[str, Tensor] = {}
        self.fine_features = features(drawn(1, FINE, 500)[0])

    def text(self, prompts: list[str], shape=None) -> Tensor:
        for prompt in set(prompts) - self.texts.keys():
            with torch.no_grad():
                self.texts[prompt] = self.world.encode([prompt]).clone()
        return torch.cat([self.texts[prompt] for prompt in prompts])

    def latents(self, art: numpy.ndarray) -> Tensor:
        images = torch.from_numpy(show(art)).float() / 255
        with torch.no_grad():
            encoded = torch.cat([self.world.vae.encode(image[None]) for image in images])
        return self.world.model.model.process_latent_in(encoded).clone()

    def corpus(self, seed: int) -> Corpus:
        """Fine pictures as the real ones, and the same scenes drawn crudely for DPO."""
        art, captions = drawn(100 + seed, FINE, self.sizes.real)
        crude, same = drawn(100 + seed, CRUDE, self.sizes.real)
        if captions != same:
            raise RuntimeError("the crude pictures show other scenes than the fine ones")
        real, rejected = self.latents(art), self.latents(crude)
        shapes = [tuple(latent.shape) for latent in real]
        fingerprint = store_key(seed=seed, real=self.sizes.real)
        return Corpus(captions, shapes, lambda i: real[i], self.text, lambda i: rejected[i], fingerprint)

    def sample(self, weights: dict[str, Tensor], prompts, noise: Tensor, steps: int, cfg: float) -> Tensor:
        """Latents as the host's sampler draws them with these weights."""
        import comfy.sample

        self.network.load_state_dict(weights)
        positive, negative = [[self.text(list(prompts)), {}]], [[self.text([""]), {}]]
        with torch.no_grad():
            drawn_latents = comfy.sample.sample(
                self.world.model,
                noise,
                steps,
                cfg,
                "euler",
                "normal",
                positive,
                negative,
                torch.zeros_like(noise),
                seed=0,
                disable_pbar=True,
            )
        return drawn_latents

    def opponent(self, player: FullPlayer, cfg: float) -> Opponent:
        def sample(prompts, seeds, shape):
            noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
            weights = player.frozen.state_dict()
            latents = self.sample(weights, prompts, noise, self.sizes.sampling_steps, cfg)
            return self.world.model.model.process_latent_in(latents)

        return Opponent(sample, {"steps": self.sizes.sampling_steps, "cfg": cfg}, 16)

    def judge(self, weights: dict[str, Tensor], prompts: list[str], seeds: int) -> dict:
        """Taste [P, S], following and Fréchet distance of pictures for the prompts, `seeds` each."""
        tastes, found, looks = [], [], []
        for seed in range(seeds):
            generator = torch.Generator().manual_seed(1000 + seed)
            noise = torch.randn(len(prompts), 4, 16, 16, generator=generator)
            parts = range(0, len(prompts), 16)
            steps, cfg = self.sizes.sampling_steps, 5.0
            latents = [self.sample(weights, prompts[i : i + 16], noise[i : i + 16], steps, cfg) for i in parts]
            with torch.no_grad():
                art = to_art(self.world.vae.decode(torch.cat(latents)))
            measured = measure(art, prompts)
            tastes.append([one.shown["taste"] for one in measured])
            found += measured
            looks.append(features(art))
        followed = accuracies(found)
        return {
            "taste": numpy.array(tastes).T,
            "followed": sum(followed.values()) / len(followed),
            "frechet": frechet_distance(numpy.concatenate(looks), self.fine_features),
        }


def drawn(seed: int, tastes: tuple[float, float], number: int) -> tuple[numpy.ndarray, list[str]]:
    """Art [N, 32, 32, 3] and captions."""
    chosen = list(itertools.islice(chosen_pictures(seed, tastes=tastes), number))
    return numpy.stack([render(picture)[0] for picture in chosen]), [picture.caption() for picture in chosen]


def trained(
    arena: Arena, method: str, rate: float, beta: float, seed: int, folder: Path, cfg: float, rounds: int
) -> list[dict]:
    """Weights after each round's worth of steps: SPIN's rounds, or the baseline at the same numbers of steps."""
    model, frozen = (copy.deepcopy(arena.network) for _ in range(2))
    model.load_state_dict(arena.base)
    player = FullPlayer(UNet(model), UNet(frozen), model, frozen)
    steps = arena.sizes.steps * (1 if method == "spin" else rounds)
    settings = RoundSettings((steps,), (beta,), (rate,), arena.sizes.batch, checkpoint_every=10**6, seed=seed)
    kept: list[dict] = []

    def keep(progress: Progress) -> None:
        if progress.report and progress.report.step % arena.sizes.steps == 0:
            kept.append({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})

    shutil.rmtree(folder, ignore_errors=True)
    run = Run(arena.corpus(seed), settings, LocalEngine(), folder, keep)
    if method == "spin":
        play(player, arena.opponent(player, cfg), run, rounds)
    else:
        train_baseline(player, run, method)
    return kept


def best_settings(arena: Arena, method: str, folder: Path, cfg: float) -> tuple[float, float]:
    """The rate and beta of the finest drawing on the search's
    prompts that follows them no worse than 0.03 below the base.
    """
    prompts = evaluation_prompts(arena.sizes.search_prompts, seed=11)
    floor = arena.judge(arena.base, prompts, 1)["followed"] - 0.03
    tried = {}
    for rate, beta in itertools.product(arena.sizes.rates, arena.sizes.betas if method != "sft" else (1.0,)):
        weights = trained(arena, method, rate, beta, 0, folder, cfg, 1)[0]
        found = arena.judge(weights, prompts, 1)
        tried[rate, beta] = (found["followed"] >= floor, found["taste"].mean())
        print(
            f"search {method}: rate {rate:g}, beta {beta:g}: taste {found['taste'].mean():.3f}, followed {found['followed']:.3f}"
        )
    return max(tried, key=tried.get)


def row(name: str, found: dict, base: dict) -> dict:
    interval = win_rate_interval(found["taste"], base["taste"])
    return {
        "name": name,
        "taste": float(found["taste"].mean()),
        "followed": float(found["followed"]),
        "frechet": float(found["frechet"]),
        "win": float(win_rate(found["taste"], base["taste"])),
        "low": float(interval.low),
        "high": float(interval.high),
    }


def table(rows: list[dict]) -> str:
    lines = ["| | taste | followed | Fréchet | wins over the base | 95% |", "| --- | --- | --- | --- | --- | --- |"]
    for r in rows:
        cells = f"{r['taste']:.3f} | {r['followed']:.3f} | {r['frechet']:.2f} | {r['win']:.2f} | {r['low']:.2f} to {r['high']:.2f}"
        lines.append(f"| {r['name']} | {cells} |")
    return "\n".join(lines)


def merged(runs: list[dict]) -> dict:
    """The same method under several training seeds: their pictures side by side."""
    return {
        "taste": numpy.concatenate([run["taste"] for run in runs], axis=1),
        "followed": numpy.mean([run["followed"] for run in runs]),
        "frechet": numpy.mean([run["frechet"] for run in runs]),
    }


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small: does it run, and which way does it point")
    parser.add_argument("--weights", type=Path, default=BASE)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/spin_evidence"), help="for the runs; emptied")
    parser.add_argument("--cfg", type=float, default=3.0, help="guidance of the opponent")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    arena = Arena(options.weights, QUICK if options.quick else WHOLE)
    sizes = arena.sizes
    prompts = evaluation_prompts(sizes.prompts, seed=7)
    base = arena.judge(arena.base, prompts, sizes.seeds)
    rows, chosen = [row("base", base, base)], {}
    wide = merged([base] * sizes.seeds)
    for method in ("sft", "dpo", "spin"):
        rate, beta = chosen[method] = best_settings(arena, method, options.folder, options.cfg)
        runs = [
            trained(arena, method, rate, beta, seed, options.folder, options.cfg, ROUNDS) for seed in range(sizes.seeds)
        ]
        for number in range(ROUNDS):
            found = merged([arena.judge(run[number], prompts, sizes.seeds) for run in runs])
            rows.append(row(f"{method.upper()}, {(number + 1) * sizes.steps} steps", found, wide))
            print(rows[-1], flush=True)
    print(table(rows))
    print("chosen on other prompts:", {method: {"rate": r, "beta": b} for method, (r, b) in chosen.items()})
    if options.json:
        print(json.dumps({"rows": rows, "chosen": chosen, "sizes": vars(sizes)}))


if __name__ == "__main__":
    main()
