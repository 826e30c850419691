"""Between the game and the host: the player out of a MODEL,
captions and pictures through CLIP and VAE, the host's sampler.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import comfy.model_management
import comfy.sample
import comfy.sd
import comfy.utils
import folder_paths
import numpy
import torch
from PIL import Image
from torch import Tensor

from spin_core.data import Report
from spin_core.encoding import Encoder, encode_dataset
from spin_core.game import Game, OnProgress, Opponent, Progress, RoundSettings, Run, play, train_baseline
from spin_core.players import FullPlayer, LoRAPlayer
from spin_core.store import TensorStore, store_key
from train_core import LocalEngine, gradient_checkpointing, save_tensors, weights_hash

from .denoiser import (
    ModelDenoiser,
    as_a_node,
    batch_contexts,
    context_of,
    load_for_training,
    model_hash,
    repeat_to_one_length,
    residuals_kept,
    training_copy,
    training_mode,
)

# Attention's projections: the layers that LoRAs of every family
# change. The U-Nets name them to_*, SD3 and Flux qkv and proj.
LORA_LAYERS = r"\.(to_q|to_k|to_v|to_out\.0|qkv|proj)$"
INTERRUPTS = (comfy.model_management.InterruptProcessingException,)


@dataclass(frozen=True)
class OpponentSampling:
    """How the opponent draws, as KSampler does."""

    sampler: str = "ddim"
    scheduler: str = "ddim_uniform"
    steps: int = 50
    cfg: float = 7.5
    negative: str = ""


@dataclass(frozen=True)
class TrainOptions:
    """What Train SPIN and Train Baseline ask for, beside the rounds' own settings."""

    method: str = "spin"
    rounds: int = 1
    adapter: bool = True
    rank: int = 16
    alpha: float = 16.0
    resolution: int = 512
    accumulation: int = 1
    precision: str = "no"
    checkpointing: bool = False
    run_name: str = "spin"
    preview_prompts: tuple[str, ...] = ()
    preview_every: int = 0
    opponent: OpponentSampling = OpponentSampling()
    opponent_batch: int = 4


@dataclass(frozen=True)
class Trained:
    """Weights as patches of the model that went in: an adapter, or (full) all of the network's weights."""

    lora: dict[str, Tensor] | None
    weights: dict[str, Tensor] | None
    metrics: dict
    report: Report


def home() -> Path:
    """Where SPIN keeps what it makes: runs, latents, the opponents' pictures."""
    return Path(folder_paths.get_output_directory()) / "spin"


class Captions:
    """Captions as the model reads them. Each is encoded once and kept on disk under the text encoder's hash."""

    def __init__(self, clip: comfy.sd.CLIP, store: TensorStore):
        self.clip, self.store = clip, store
        self.model_hash = model_hash(clip.cond_stage_model)
        self.patches = str(clip.patcher.patches_uuid) if clip.patcher.patches else ""
        self.seen: dict[str, list] = {}

    def conditioning(self, prompt: str) -> list:
        """CONDITIONING of one prompt."""
        if prompt not in self.seen:
            self.seen[prompt] = self._kept(prompt)
        return self.seen[prompt]

    def _kept(self, prompt: str) -> list:
        made_from = {"prompt": prompt, "clip": self.model_hash, "patches": self.patches, "layer": self.clip.layer_idx}
        key = store_key(**made_from)
        if self.store.get(key) is None:
            with torch.inference_mode():  # as the executor runs nodes: see denoiser.as_a_node
                cross_attn, options = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt))[0]
            tensors = {name: value for name, value in options.items() if isinstance(value, Tensor)}
            self.store.put(key, {"cross_attn": cross_attn} | tensors, made_from)
        tensors = self.store.get(key)
        return [[tensors.pop("cross_attn"), tensors]]

    def batch(self, prompts: list[str]) -> list:
        """CONDITIONING of several prompts, one a row of the batch that is sampled."""
        rows = [self.conditioning(prompt)[0] for prompt in prompts]
        cross_attn = torch.cat(repeat_to_one_length([row[0] for row in rows]))
        return [[cross_attn, {name: torch.cat([row[1][name] for row in rows]) for name in rows[0][1]}]]


def host_sampler(patcher, captions: Captions, sampling: OpponentSampling) -> Callable[..., Tensor]:
    """The model as it is now, through KSampler. Each picture's first noise hangs on its own seed alone."""

    def sample(prompts: list[str], seeds: list[int], shape: tuple[int, ...]) -> Tensor:
        empty = torch.zeros(1, *shape)
        noise = torch.cat([comfy.sample.prepare_noise(empty, seed) for seed in seeds])
        conditions = captions.batch(prompts), captions.batch([sampling.negative] * len(prompts))
        how = (sampling.steps, sampling.cfg, sampling.sampler, sampling.scheduler, *conditions)
        draw = partial(comfy.sample.sample, disable_pbar=True, seed=seeds[0])
        latents = as_a_node(draw, patcher, noise, *how, torch.zeros_like(noise))
        return patcher.model.process_latent_in(latents)

    return sample


def picture_encoder(vae: comfy.sd.VAE, model, store: TensorStore, resolution: int) -> Encoder:
    """Pictures to the latents that the model reads."""

    def encode(image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(numpy.asarray(image, dtype=numpy.float32) / 255)
        return model.process_latent_in(as_a_node(vae.encode, pixels[None]))[0].float()

    multiple = 64 if resolution >= 256 else 16  # the steps of SD's own training sizes; small worlds have small pictures
    return Encoder(encode, model_hash(vae.first_stage_model), store, resolution, multiple)


class Watch:
    """Progress in the browser: pairs and pictures on the node's bar, a word on where the run is, previews."""

    def __init__(self, say: Callable[[str], None], every: int, preview: Callable[[], Image.Image] | None):
        self.say, self.every, self.preview = say, every, preview
        self.bar, self.phase = None, None

    def __call__(self, progress: Progress) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if (progress.phase, progress.round_number) != self.phase:
            self.phase = (progress.phase, progress.round_number)
            self.bar = comfy.utils.ProgressBar(progress.total)
        what = "the opponent's pictures" if progress.phase == "generate" else "pairs"
        loss = f", loss {progress.report.loss:.4f}" if progress.report else ""
        self.say(f"Round {progress.round_number}: {progress.done} of {progress.total} {what}{loss}")
        self.bar.update_absolute(progress.done, progress.total, self._picture(progress))

    def _picture(self, progress: Progress):
        due = progress.report and self.preview and self.every and progress.report.step % self.every == 0
        return ("JPEG", self.preview(), 512) if due else None


def picture_strip(vae: comfy.sd.VAE, model, latents: Tensor) -> Image.Image:
    """Latents as pictures side by side."""
    pixels = as_a_node(vae.decode, model.process_latent_out(latents))  # [B, H, W, 3]
    strip = torch.cat(list(pixels.clamp(0, 1)), dim=1)
    return Image.fromarray((strip * 255).round().to(torch.uint8).cpu().numpy())


def train(
    model, clip, vae, dataset, settings: RoundSettings, options: TrainOptions, say: Callable[[str], None]
) -> Trained:
    """Plays the rounds, or trains the baseline, on a copy of `model`.

    What is learnt when the user interrupts is written to the run's folder before the interrupt goes on.
    """
    with training_mode(), ExitStack() as stack:
        patchers = [training_copy(model) for _ in range(1 if options.adapter else 2)]
        patcher = patchers[0]
        network = patcher.model.diffusion_model
        stack.enter_context(residuals_kept(network))
        if options.checkpointing:
            stack.enter_context(gradient_checkpointing(transformer_blocks(network)))
        store = TensorStore(home() / "cache")
        captions = Captions(clip, store)
        player = lora_player(patcher, options, settings.seed) if options.adapter else full_player(*patchers)
        report = Report()
        corpus = encode_dataset(
            dataset,
            picture_encoder(vae, patcher.model, store, options.resolution),
            lambda prompts, shape: batch_contexts(
                [context_of(patcher.model, captions.conditioning(p), shape) for p in prompts]
            ),
            report,
            pairs=options.method == "dpo",
            on_picture=lambda done: comfy.model_management.throw_exception_if_processing_interrupted(),
        )
        load_for_training(patchers)
        stack.enter_context(player.attached())
        sample = host_sampler(patcher, captions, options.opponent)
        watch = Watch(say, options.preview_every, previewer(vae, patchers, sample, corpus, options.preview_prompts))
        parent = player.opponent_hash()
        run = make_run(corpus, settings, options, patcher.load_device, watch, parent)
        game = play_method(player, returning(sample, patchers), run, options)
        metrics = metrics_of(game, settings, options, parent, run.folder)
        trained = Trained(*learnt(player, options), metrics, report)
        if game.stopped_by is not None:
            say(
                f"Stopped; what was learnt is kept in {keep_stopped(trained, run.folder)}. Queue again to go on from here."
            )
            raise game.stopped_by
        return trained


def lora_player(patcher, options: TrainOptions, seed: int) -> LoRAPlayer:
    network = patcher.model.diffusion_model
    base_hash = weights_hash(network.state_dict())
    return LoRAPlayer(ModelDenoiser(patcher), network, base_hash, LORA_LAYERS, options.rank, options.alpha, seed)


def full_player(patcher, opponent) -> FullPlayer:
    """Player and opponent as two copies of one model, in float32 whatever the model is in."""
    for own in (patcher, opponent):
        own.model.diffusion_model.float()
    return FullPlayer(
        ModelDenoiser(patcher), ModelDenoiser(opponent), patcher.model.diffusion_model, opponent.model.diffusion_model
    )


def transformer_blocks(network: torch.nn.Module) -> list[torch.nn.Module]:
    """The blocks that are worth computing twice."""
    names = ("BasicTransformerBlock", "JointBlock", "DoubleStreamBlock", "SingleStreamBlock")
    return [module for module in network.modules() if type(module).__name__ in names]


def previewer(vae, patchers, sample, corpus, prompts: tuple[str, ...]) -> Callable[[], Image.Image] | None:
    """Draws the same prompts with the same seeds whenever it is called."""
    if not prompts:
        return None
    seeds, shape = list(range(len(prompts))), tuple(corpus.shapes[0])

    def preview() -> Image.Image:
        strip = picture_strip(vae, patchers[0].model, sample(list(prompts), seeds, shape))
        load_for_training(patchers)
        return strip

    return preview


def returning(sample: Callable[..., Tensor], patchers: list) -> Callable[..., Tensor]:
    """The sampler, after which the copies are where training needs them: short of memory, a prompt's encoding displaces them."""

    def draw(*wanted) -> Tensor:
        latents = sample(*wanted)
        load_for_training(patchers)
        return latents

    return draw


def make_run(corpus, settings, options: TrainOptions, device, on_progress: OnProgress, parent: str) -> Run:
    """A run's folder is named after everything that it comes
    from: the same again is continued, anything else starts anew.
    """
    free = ("preview_prompts", "preview_every", "run_name", "rounds", "checkpointing")
    fixed = {name: value for name, value in asdict(options).items() if name not in free}
    made_from = json.dumps([asdict(settings), fixed, parent, corpus.fingerprint], sort_keys=True)
    name = "".join(letter if letter.isalnum() or letter in "-_ " else "_" for letter in options.run_name) or "spin"
    folder = home() / "runs" / f"{name}-{hashlib.sha256(made_from.encode()).hexdigest()[:10]}"
    engine = LocalEngine(device, options.precision, options.accumulation)
    return Run(corpus, settings, engine, folder, on_progress, INTERRUPTS, pictures=home() / "pictures")


def play_method(player, sample, run: Run, options: TrainOptions) -> Game:
    if options.method == "spin":
        opponent = Opponent(sample, asdict(options.opponent), options.opponent_batch)
        return play(player, opponent, run, options.rounds)
    return train_baseline(player, run, options.method)


def learnt(player, options: TrainOptions) -> tuple[dict | None, dict | None]:
    """(adapter, None) or (None, all weights)."""
    if options.adapter:
        return player.lora_state_dict(), None
    return None, player.result()


def keep_stopped(trained: Trained, folder: Path) -> Path:
    """Writes what an interrupted run has learnt so far, as a file that Load SPIN Checkpoint reads."""
    path = folder / "stopped.safetensors"
    tensors = trained.lora if trained.lora is not None else trained.weights
    save_tensors(
        path, {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, file_metadata(trained.metrics)
    )
    return path


def file_metadata(metrics: dict) -> dict[str, str]:
    """What a saved file says of its making: the parent's hash, the round, the settings."""
    return {
        "spin.method": metrics["method"],
        "spin.parent": metrics["parent"],
        "spin.round": str(len(metrics["rounds"])),
        "spin.settings": json.dumps(metrics["settings"]),
    }


def metrics_of(game: Game, settings: RoundSettings, options: TrainOptions, parent: str, folder: Path) -> dict:
    rounds = [[asdict(report) for report in training.history] for training in game.rounds]
    return {
        "method": options.method,
        "parent": parent,
        "opponents": game.opponents,
        "settings": {**asdict(settings), **asdict(options)},
        "folder": os.path.relpath(folder, folder_paths.get_output_directory()),
        "rounds": rounds,
    }


def with_learnt(model, trained: Trained):
    """The model that went in, with what was learnt as the host's own patches."""
    if trained.lora is not None:
        return comfy.sd.load_lora_for_models(model, None, trained.lora, 1.0, 0.0)[0]
    patched = model.clone()
    patched.add_patches({f"diffusion_model.{name}": ("set", (weight,)) for name, weight in trained.weights.items()})
    return patched
