"""Where the methods meet: the Sprite World's base, its data of known taste, training from it, and the judging of pictures."""

import copy
import itertools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy
import torch
from torch import Tensor

from ..scripts.sprite_world_card import World
from ..scripts.train_sprite_world import OPTIONS
from ..spin_core.batches import Corpus
from ..spin_core.game import Opponent, Progress, RoundSettings, Run, play, train_baseline
from ..spin_core.players import FullPlayer, LoRAPlayer
from ..spin_core.store import store_key
from ..sprite_world.measure import accuracies, features, frechet_distance, measure, to_art
from ..sprite_world.pictures import chosen_pictures, render, show
from ..train_core import (
    LocalEngine,
    NoiseSchedule,
    find_layers,
    lora_delta,
    scaled_linear_alphas_cumprod,
    weights_hash,
)

FINE, FAIR, CRUDE = (0.8, 1.0), (0.6, 0.8), (0.0, 0.2)
LAYERS = r"\.(to_q|to_k|to_v|to_out\.0|proj_out)$"  # of the LoRA
JUDGED_CFG = 5.0
DRAWN_AT_ONCE = 20
SHOWN = 8  # pictures of each judged model that a person gets to see

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Method:
    """How one model is trained. kind: sft, dpo or spin; steps: of a round, or of a baseline in a third of its training."""

    kind: str
    rate: float
    beta: float = 2000.0
    steps: int = 50
    rounds: int = 3
    cfg: float = 3.0  # the opponent's
    share_noise: bool = True
    lora_rank: int = 0  # 0: all weights
    rejected: tuple[float, float] = CRUDE  # the taste of the pictures that DPO turns from


class UNet:
    """The world's network as a Denoiser."""

    prediction = "epsilon"

    def __init__(self, module: torch.nn.Module):
        self.module = module
        self.schedule = NoiseSchedule.from_alphas_cumprod(scaled_linear_alphas_cumprod())

    def predict(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self.module(x_t, t.float(), context=context, transformer_options=OPTIONS)


def drawn(seed: int, tastes: tuple[float, float], number: int) -> tuple[numpy.ndarray, list[str]]:
    """Art [N, 32, 32, 3] and captions."""
    chosen = list(itertools.islice(chosen_pictures(seed, tastes=tastes), number))
    return numpy.stack([render(picture)[0] for picture in chosen]), [picture.caption() for picture in chosen]


class Arena:
    """The world, its base weights, the data, and the measures.

    real: pictures to train on; batch: pairs a step; sampling_steps: of the opponent's pictures and of the judged ones.
    """

    def __init__(self, weights: Path, real: int, batch: int, sampling_steps: int):
        self.world = World(weights)
        self.real, self.batch, self.sampling_steps = real, batch, sampling_steps
        self.network = self.world.model.model.diffusion_model
        self.base: Weights = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.base_hash = weights_hash(self.base)
        self.texts: dict[str, Tensor] = {}
        self.fine_features = features(drawn(1, FINE, 500)[0])

    def text(self, prompts: list[str], shape=None) -> Tensor:
        for prompt in set(prompts) - self.texts.keys():
            with torch.no_grad():
                self.texts[prompt] = self.world.encode([prompt]).clone()
        return torch.cat([self.texts[prompt] for prompt in prompts])

    def latents(self, art: numpy.ndarray) -> Tensor:
        with torch.no_grad():
            encoded = self.world.vae.encode(torch.from_numpy(show(art)).float() / 255)
        return self.world.model.model.process_latent_in(encoded).clone()

    def corpus(self, seed: int, rejected_taste: tuple[float, float]) -> Corpus:
        """Fine pictures as the real ones, and the same scenes less finely drawn for DPO."""
        art, captions = drawn(100 + seed, FINE, self.real)
        worse, same = drawn(100 + seed, rejected_taste, self.real)
        if captions != same:
            raise RuntimeError("the rejected pictures show other scenes than the fine ones")
        real, rejected = self.latents(art), self.latents(worse)
        shapes = [tuple(latent.shape) for latent in real]
        fingerprint = store_key(seed=seed, real=self.real, rejected=list(rejected_taste))
        return Corpus(captions, shapes, lambda i: real[i], self.text, lambda i: rejected[i], fingerprint)

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

    def train(self, method: Method, seed: int, folder: Path) -> list[Weights]:
        """The weights after each round; of a baseline, after as many steps as each round has."""
        shutil.rmtree(folder, ignore_errors=True)
        model = copy.deepcopy(self.network)
        model.load_state_dict(self.base)
        kept: list[Weights] = []

        def keep(progress: Progress) -> None:
            if progress.report and progress.report.step % method.steps == 0:
                kept.append({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})

        baseline = method.kind != "spin"
        settings = RoundSettings(
            (method.steps * (method.rounds if baseline else 1),),
            (method.beta,),
            (method.rate,),
            self.batch,
            warmup_steps=5,
            checkpoint_every=10**6,
            share_noise=method.share_noise,
            seed=seed,
        )
        run = Run(self.corpus(seed, method.rejected), settings, LocalEngine(), folder, keep)
        if method.lora_rank:
            return self._adapted(model, method, run)
        frozen = copy.deepcopy(model)
        player = FullPlayer(UNet(model), UNet(frozen), model, frozen)
        if baseline:
            train_baseline(player, run, method.kind)
        else:
            play(player, self.opponent(frozen.state_dict, method.cfg), run, method.rounds)
        return kept

    def _adapted(self, model, method: Method, run: Run) -> list[Weights]:
        """One round by LoRA, its adapter added to the weights."""
        if method.rounds != 1:
            raise ValueError("the arena plays a LoRA for one round: its opponent draws with the base's weights")
        rank = method.lora_rank
        player = LoRAPlayer(
            UNet(model), model, self.base_hash, find_layers(model, LAYERS), rank, rank, run.settings.seed
        )
        with player.attached():
            play(player, self.opponent(lambda: self.base, method.cfg), run, 1)
        weights = dict(self.base)
        for name, layer in player.earlier[0].layers().items():
            weights[f"{name}.weight"] = (
                weights[f"{name}.weight"] + lora_delta(layer.up, layer.down, layer.scale).detach()
            )
        return [weights]

    def judge(self, weights: Weights, prompts: list[str], seed: int) -> dict:
        """Taste of each prompt's picture [P], following, Fréchet distance to fine renders, the first pictures."""
        noise = torch.randn(len(prompts), 4, 16, 16, generator=torch.Generator().manual_seed(1000 + seed))
        parts = [slice(i, i + DRAWN_AT_ONCE) for i in range(0, len(prompts), DRAWN_AT_ONCE)]
        draw = partial(self.sample, weights, cfg=JUDGED_CFG)
        with torch.no_grad():
            art = to_art(self.world.vae.decode(torch.cat([draw(prompts[part], noise[part]) for part in parts])))
        measured = measure(art, prompts)
        followed = accuracies(measured)
        return {
            "taste": [one.shown["taste"] for one in measured],
            "followed": sum(followed.values()) / len(followed),
            "class_word": followed["class_word"],
            "frechet": frechet_distance(features(art), self.fine_features),
            "shown": art[:SHOWN].tolist(),
        }
