"""Where the methods meet: the Sprite World's base, training from it on pairs, and the drawing of what is judged.

All in float32: bfloat16 is twice as fast on a CPU that multiplies in it, and ten times as slow on one that does not.
"""

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy
import torch
from torch import Tensor

from ..scripts.sprite_world_card import World
from ..scripts.train_sprite_world import OPTIONS
from ..spin_core.batches import Corpus
from ..spin_core.game import Opponent, Progress, RoundSettings, Run, play, train_baseline
from ..spin_core.objectives import KAPPA
from ..spin_core.players import FullPlayer, LoRAPlayer
from ..spin_core.steps import PairOptions
from ..spin_core.store import store_key
from ..sprite_world.measure import to_art
from ..sprite_world.pictures import show
from ..train_core import (
    LocalEngine,
    NoiseSchedule,
    StepReport,
    find_layers,
    lora_delta,
    scaled_linear_alphas_cumprod,
    unet_layers,
    weights_hash,
)
from .spin_people import Pairs

JUDGED_CFG = 5.0
DRAWN_AT_ONCE = 20

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Method:
    """How one model is trained. kind: sft, dpo, kto or spin; steps: of a round, and of a baseline between two judgements.

    rate, beta: of all rounds, or one a round, the last one staying. sft_rate: that of supervised fine-tuning in the first
    `steps` steps, after which the method starts from there; 0 starts from the base. cfg: the opponent's.
    """

    kind: str
    rate: float | tuple[float, ...]
    beta: float = 2000.0
    steps: int = 50
    rounds: int = 3
    sft_rate: float = 0.0
    cfg: float = 3.0
    share_noise: bool = True
    lora_rank: int = 0  # 0: all weights
    safeguard: float | None = None

    @property
    def rates(self) -> tuple[float, ...]:
        return self.rate if isinstance(self.rate, tuple) else (self.rate,)


@dataclass
class States:
    """What a training came to: the weights after each `steps` steps, and every step's report, round by round."""

    weights: list[Weights] = field(default_factory=list)
    reports: list[tuple[int, StepReport]] = field(default_factory=list)


class UNet:
    """The world's network as a Denoiser."""

    prediction = "epsilon"

    def __init__(self, module: torch.nn.Module):
        self.module = module
        self.schedule = NoiseSchedule.from_alphas_cumprod(scaled_linear_alphas_cumprod())

    def predict(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self.module(x_t, t.float(), context=context, transformer_options=OPTIONS)


class Arena:
    """The world, its base weights, training from them, and drawing.

    batch: pairs a step; sampling_steps: of the opponents' pictures and of the judged ones.
    """

    def __init__(self, weights: Path, batch: int, sampling_steps: int):
        self.world = World(weights)
        self.batch, self.sampling_steps = batch, sampling_steps
        self.engine = LocalEngine("cpu")
        self.network = self.world.model.model.diffusion_model
        self.base: Weights = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.base_hash = weights_hash(self.base)
        self.texts: dict[str, Tensor] = {}

    def text(self, prompts: list[str], shape=None) -> Tensor:
        for prompt in set(prompts) - self.texts.keys():
            with torch.no_grad():
                self.texts[prompt] = self.world.encode([prompt]).clone()
        return torch.cat([self.texts[prompt] for prompt in prompts])

    def latents(self, art: numpy.ndarray) -> Tensor:
        with torch.no_grad():
            encoded = self.world.vae.encode(torch.from_numpy(show(art)).float() / 255)
        return self.world.model.model.process_latent_in(encoded).clone()

    def corpus(self, pairs: Pairs) -> Corpus:
        """The winners as the real pictures, the losers for those methods that learn from both."""
        real, rejected = self.latents(pairs.winners), self.latents(pairs.losers)
        shapes = [tuple(latent.shape) for latent in real]
        fingerprint = store_key(captions=pairs.captions, winners=pairs.winners.tobytes().hex())
        return Corpus(pairs.captions, shapes, lambda i: real[i], self.text, lambda i: rejected[i], fingerprint)

    def sample(self, weights: Weights, prompts: list[str], noise: Tensor, cfg: float) -> Tensor:
        """Latents [B, 4, 16, 16] as the host's sampler draws them with these weights."""
        import comfy.sample

        self.network.load_state_dict(weights)
        conditions = [[[self.text(texts), {}]] for texts in (prompts, [""])]
        empty, steps = torch.zeros_like(noise), self.sampling_steps
        with torch.no_grad():
            return comfy.sample.sample(
                self.world.model, noise, steps, cfg, "euler", "normal", *conditions, empty, seed=0, disable_pbar=True
            )

    def opponent(self, weights: Callable[[], Weights], cfg: float) -> Opponent:
        """Draws with whatever `weights` gives at the time."""

        def sample(prompts, seeds, shape):
            noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
            return self.world.model.model.process_latent_in(self.sample(weights(), prompts, noise, cfg))

        return Opponent(sample, {"steps": self.sampling_steps, "cfg": cfg}, DRAWN_AT_ONCE)

    def train(self, method: Method, pairs: Pairs, seed: int, folder: Path) -> States:
        """One state a round; of a baseline, after as many steps as each round has.

        Opponents' pictures are kept beside the folder, so that rates and kinds of labels share the base's.
        """
        corpus, states, start = self.corpus(pairs), States(), self.base
        if method.sft_rate:
            first = replace(method, kind="sft", rate=method.sft_rate, rounds=1, sft_rate=0.0)
            states = self._trained(first, corpus, seed, start, folder)
            start, method = states.weights[-1], replace(method, rounds=method.rounds - 1)
        if method.rounds:
            rest = self._trained(method, corpus, seed, start, folder)
            states = States(states.weights + rest.weights, states.reports + rest.reports)
        return states

    def _trained(self, method: Method, corpus: Corpus, seed: int, start: Weights, folder: Path) -> States:
        """From the first step: what a run that was cut left in the folder would give its result, and not its states."""
        shutil.rmtree(folder, ignore_errors=True)
        model = copy.deepcopy(self.network)
        model.load_state_dict(start)
        states = States()

        def keep(progress: Progress) -> None:
            if progress.report is None:
                return
            states.reports.append((progress.round_number, progress.report))
            if progress.report.step % method.steps == 0:
                states.weights.append(copied(model.state_dict()))

        run = Run(corpus, self._settings(method, seed), self.engine, folder, keep, pictures=folder.parent / "pictures")
        if method.lora_rank:
            states = States([self._adapted(model, method, run)], states.reports)
        else:
            frozen = copy.deepcopy(model)
            player = FullPlayer(UNet(model), UNet(frozen), model, frozen)
            if method.kind == "spin":
                play(player, self.opponent(frozen.state_dict, method.cfg), run, method.rounds)
            else:
                train_baseline(player, run, method.kind)
        shutil.rmtree(folder)
        return states

    def _settings(self, method: Method, seed: int) -> RoundSettings:
        steps = method.steps if method.kind == "spin" else method.steps * method.rounds
        return RoundSettings(
            (steps,),
            (method.beta * (KAPPA if method.kind == "kto" else 1.0),),  # KTO's authors have no kappa
            method.rates,
            self.batch,
            warmup_steps=5,
            checkpoint_every=10**6,
            share_noise=method.share_noise,
            options=PairOptions(safeguard=method.safeguard),
            seed=seed,
        )

    def _adapted(self, model, method: Method, run: Run) -> Weights:
        """One round by LoRA, its adapter added to the weights."""
        if method.rounds != 1:
            raise ValueError("the arena plays a LoRA for one round: its opponent draws with the base's weights")
        rank, layers = method.lora_rank, find_layers(model, unet_layers("attention"))
        player = LoRAPlayer(UNet(model), model, self.base_hash, layers, rank, rank, run.settings.seed)
        with player.attached():
            play(player, self.opponent(lambda: self.base, method.cfg), run, 1)
        weights = dict(self.base)
        for name, layer in player.earlier[0].layers().items():
            weights[f"{name}.weight"] = (
                weights[f"{name}.weight"] + lora_delta(layer.up, layer.down, layer.scale).detach()
            )
        return weights

    def draw(self, weights: Weights, prompts: list[str], seed: int, cfg: float = JUDGED_CFG) -> numpy.ndarray:
        """A picture for each prompt: art [P, 32, 32, 3]."""
        noise = torch.randn(len(prompts), 4, 16, 16, generator=torch.Generator().manual_seed(1000 + seed))
        parts = [slice(i, i + DRAWN_AT_ONCE) for i in range(0, len(prompts), DRAWN_AT_ONCE)]
        draw = partial(self.sample, weights, cfg=cfg)
        with torch.no_grad():
            return to_art(self.world.vae.decode(torch.cat([draw(prompts[part], noise[part]) for part in parts])))


def copied(weights: Weights) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in weights.items()}
