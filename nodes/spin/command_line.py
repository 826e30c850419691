"""vico-spin train --checkpoint: the game of Train SPIN, from the files that people have, on one process or on many."""

import signal
from contextlib import ExitStack
from pathlib import Path

import comfy.sd
import torch

from ...intake import Report
from ...spin_core.cli import Log, make_engine, plain_values
from ...spin_core.curves import verdict
from ...spin_core.data import Dataset
from ...spin_core.game import Opponent, Run, play, train_baseline
from ...spin_core.settings import TrainSettings
from ...spin_core.store import TensorStore
from ...train_core import save_tensors
from ..host.copies import training_mode
from ..host.options import TrainingOptions
from .asked import TrainingRun
from .captions import Captions, OpponentSampling, host_sampler
from .checkpoints import read_weights
from .session import make_corpus, metrics_of
from .trainee import lora_trainee
from .usual import usual_sampling


def run_train(settings: TrainSettings) -> None:
    """Plays the rounds on every process alike; the pictures and the gradients are shared out."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was learnt is kept, as after Ctrl-C
    engine = make_engine(settings)
    with torch.inference_mode():  # as the host's loaders run
        model, clip, vae = load_parts(settings)
    asked = asked_for(settings, model)
    settings.output.mkdir(parents=True, exist_ok=True)
    with training_mode(), ExitStack() as stack:
        trainee, report = lora_trainee(model, asked), Report()
        captions = Captions(clip, TensorStore(settings.output / "cache"))
        with engine.main_process_first():  # it encodes, and the others read what it kept
            corpus = make_corpus(model.model, captions, vae, Dataset(settings.data), asked, report)
        if engine.is_main_process:
            print(report.text())
        if settings.tracker:
            engine.init_trackers("spin", plain_values(settings))
        stack.enter_context(trainee.ready)
        stack.enter_context(trainee.player.attached())
        run = Run(corpus, asked.settings, engine, settings.output, Log(settings, engine))
        game = played(trainee, host_sampler(trainee.patcher, captions, asked.opponent), run, asked)
    if engine.is_main_process:
        save_tensors(
            settings.output / "lora.safetensors", on_the_cpu(trainee.player.lora_state_dict()), {"format": "pt"}
        )
        print(verdict(metrics_of(game, asked, trainee.player.base_hash, settings.output)))
    engine.end_training()


def played(trainee, sample, run: Run, asked: TrainingRun):
    """The rounds, or the baseline."""
    if asked.method != "spin":
        return train_baseline(trainee.player, run, asked.method)

    def draw(*wanted) -> torch.Tensor:
        with trainee.drawing():
            return sample(*wanted)

    return play(trainee.player, Opponent(draw, asked.made_from()["opponent"], asked.opponent.batch), run, asked.rounds)


def on_the_cpu(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu().contiguous() for name, tensor in state.items()}


def load_parts(settings: TrainSettings) -> tuple:
    """MODEL, CLIP and VAE of the files. Raises: ValueError naming the part that no file holds."""
    for file in (settings.checkpoint, settings.vae, *settings.text_encoder):
        if file is not None and not Path(file).is_file():
            raise ValueError(f'there is no file "{file}"')
    weights, metadata = read_weights(Path(settings.checkpoint))
    found = comfy.sd.load_state_dict_guess_config(weights, metadata=metadata)
    if found is None:
        raise ValueError(f'"{settings.checkpoint}" is no checkpoint or diffusion model that ComfyUI knows')
    model, clip, vae, _ = found
    if settings.text_encoder:
        kind = getattr(comfy.sd.CLIPType, settings.text_type.upper(), None)
        if kind is None:
            known = ", ".join(sorted(kind.name.lower() for kind in comfy.sd.CLIPType))
            raise ValueError(f'--text-type "{settings.text_type}" is not known: choose of {known}')
        clip = comfy.sd.load_clip([str(file) for file in settings.text_encoder], clip_type=kind)
    if settings.vae is not None:
        vae = comfy.sd.VAE(sd=read_weights(Path(settings.vae))[0])
    if clip is None:
        raise ValueError(f'"{settings.checkpoint}" holds no text encoder: name its files with --text-encoder')
    if vae is None or vae.first_stage_model is None:
        raise ValueError(f'"{settings.checkpoint}" holds no VAE: name its file with --vae')
    return model, clip, vae


def asked_for(settings: TrainSettings, model) -> TrainingRun:
    """The command's settings as the nodes would ask."""
    usual = usual_sampling(model)
    how = {"cfg": settings.cfg, "negative": settings.negative, "batch": settings.generation_batch}
    return TrainingRun(
        settings=settings.rounds_settings(),
        options=TrainingOptions(settings.precision, settings.gradient_checkpointing, settings.accumulation),
        opponent=OpponentSampling(usual.sampler, usual.scheduler, settings.sampling_steps, **how),
        method=settings.method,
        rounds=settings.rounds,
        rank=settings.rank,
        layers=settings.lora_layers,
        resolution=settings.resolution,
        name=settings.output.name,
    )
