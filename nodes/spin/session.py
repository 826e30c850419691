"""A game in the graph: the player out of a MODEL, and what it has learnt as patches of that MODEL."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import comfy.model_management
import comfy.sd
import folder_paths
import torch
from PIL import Image
from torch import Tensor

from ...intake import Report
from ...spin_core.encoding import encode_dataset
from ...spin_core.game import Game, OnProgress, Opponent, Progress, RoundSettings, Run, play, train_baseline
from ...spin_core.players import FullPlayer, LoRAPlayer
from ...spin_core.store import TensorStore
from ...train_core import LocalEngine, gradient_checkpointing, save_tensors, weights_hash
from ..host.copies import load_for_training, residuals_kept, training_copy, training_mode
from ..host.denoiser import ModelDenoiser, batch_contexts, context_of
from ..host.folders import run_name
from ..host.options import TrainingOptions
from ..host.progress import Watch
from .captions import Captions, OpponentSampling, host_sampler, picture_encoder, picture_strip
from .checkpoints import FOLDER, file_metadata

# Attention's projections: the layers that LoRAs of every family
# change. The U-Nets name them to_*, SD3 and Flux qkv and proj.
LORA_LAYERS = r"\.(to_q|to_k|to_v|to_out\.0|qkv|proj)$"
INTERRUPTS = (comfy.model_management.InterruptProcessingException,)


@dataclass(frozen=True)
class TrainingRun:
    """What Train SPIN or Train Baseline was asked for. rank: of the LoRA; None trains all weights."""

    settings: RoundSettings
    options: TrainingOptions = field(default_factory=TrainingOptions)
    opponent: OpponentSampling = field(default_factory=OpponentSampling)
    method: str = "spin"
    rounds: int = 1
    rank: int | None = 16
    resolution: int = 512
    name: str = "spin"
    preview_prompts: tuple[str, ...] = ()

    def made_from(self) -> dict:
        """All that decides the result, but for the models and the data."""
        settings, opponent = asdict(self.settings), asdict(self.opponent)
        del settings["checkpoint_every"], settings["low_memory"], opponent["batch"]  # how it is done
        return {
            "settings": settings,
            "method": self.method,
            "rank": self.rank,
            "resolution": self.resolution,
            "precision": self.options.precision,
            "accumulation": self.options.accumulation,
            "opponent": opponent,
        }


@dataclass(frozen=True)
class Trained:
    """Weights as patches of the model that went in: an adapter, or (full) all of the network's weights."""

    lora: dict[str, Tensor] | None
    weights: dict[str, Tensor] | None
    metrics: dict
    report: Report


def home() -> Path:
    """Where SPIN keeps what it makes: runs, latents, the opponents' pictures."""
    return Path(folder_paths.get_output_directory()) / FOLDER


def shown_by(watch: Watch) -> OnProgress:
    """The game's progress on the node: a bar for the opponent's pictures of each round, and one for its steps."""
    phase = None

    def show(progress: Progress) -> None:
        nonlocal phase
        if (progress.phase, progress.round_number) != phase:
            phase = (progress.phase, progress.round_number)
            watch.begin(progress.total)
        if progress.report:
            watch.step(progress.report, f"Round {progress.round_number}. ")
        else:
            watch.pictures(progress.done, f"Round {progress.round_number}")

    return show


def train(model, clip, vae, dataset, asked: TrainingRun, say: Callable[[str], None]) -> Trained:
    """Plays the rounds, or trains the baseline, on a copy of `model`.

    What is learnt when the user interrupts is written to the run's folder before the interrupt goes on.
    """
    with training_mode(), ExitStack() as stack:
        patchers = [training_copy(model) for _ in range(2 if asked.rank is None else 1)]
        patcher = patchers[0]
        network = patcher.model.diffusion_model
        stack.enter_context(residuals_kept(network))
        if asked.options.checkpointing:
            stack.enter_context(gradient_checkpointing(transformer_blocks(network)))
        store = TensorStore(home() / "cache")
        captions = Captions(clip, store)
        player = full_player(*patchers) if asked.rank is None else lora_player(patcher, asked.rank, asked.settings.seed)
        report = Report()
        corpus = encode_dataset(
            dataset,
            picture_encoder(vae, patcher.model, store, asked.resolution),
            lambda prompts, shape: batch_contexts(
                [context_of(patcher.model, captions.conditioning(p), shape) for p in prompts]
            ),
            report,
            pairs=asked.method == "dpo",
            on_picture=lambda done: comfy.model_management.throw_exception_if_processing_interrupted(),
            seed=asked.settings.seed,
        )
        load_for_training(patchers)
        stack.enter_context(player.attached())
        sample = host_sampler(patcher, captions, asked.opponent)
        watch = Watch(say, asked.options.preview_every, previewer(vae, patchers, sample, corpus, asked.preview_prompts))
        parent = player.opponent_hash()
        run = make_run(corpus, asked, patcher.load_device, shown_by(watch), parent)
        game = play_method(player, returning(sample, patchers), run, asked)
        trained = Trained(*learnt(player, asked), metrics_of(game, asked, parent, run.folder), report)
        if game.stopped_by is not None:
            kept = keep_stopped(trained, run.folder)
            say(f"Stopped; what was learnt is kept in {kept}. Queue again to go on from here.")
            raise game.stopped_by
        return trained


def lora_player(patcher, rank: int, seed: int) -> LoRAPlayer:
    network = patcher.model.diffusion_model
    base_hash = weights_hash(network.state_dict())
    return LoRAPlayer(ModelDenoiser(patcher), network, base_hash, LORA_LAYERS, rank, float(rank), seed)


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


def make_run(corpus, asked: TrainingRun, device, on_progress: OnProgress, parent: str) -> Run:
    """A run's folder is named after all that it comes from: the same again goes on, anything else starts anew."""
    name = run_name(asked.name, {**asked.made_from(), "parent": parent, "data": corpus.fingerprint})
    engine = LocalEngine(device, asked.options.precision, asked.options.accumulation)
    folder = home() / "runs" / name
    others = tuple(other for other in folder.parent.glob(f"{name.rpartition('-')[0]}-*") if other != folder)
    return Run(corpus, asked.settings, engine, folder, on_progress, INTERRUPTS, home() / "pictures", earlier=others)


def play_method(player, sample, run: Run, asked: TrainingRun) -> Game:
    if asked.method == "spin":
        opponent = Opponent(sample, asked.made_from()["opponent"], asked.opponent.batch)
        return play(player, opponent, run, asked.rounds)
    return train_baseline(player, run, asked.method)


def learnt(player, asked: TrainingRun) -> tuple[dict | None, dict | None]:
    """(adapter, None) or (None, all weights)."""
    if asked.rank is not None:
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


def metrics_of(game: Game, asked: TrainingRun, parent: str, folder: Path) -> dict:
    rounds = [[asdict(report) for report in training.history] for training in game.rounds]
    return {
        "method": asked.method,
        "parent": parent,
        "opponents": game.opponents,
        "settings": asdict(asked),
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
