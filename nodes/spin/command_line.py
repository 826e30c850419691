"""vico-spin train | generate --checkpoint: the game of Train SPIN, from the files that people have, on one process or on many."""

import signal
from contextlib import ExitStack
from pathlib import Path

import comfy.sd
import torch

from ...intake import Report
from ...spin_core.batches import Corpus
from ...spin_core.cli import Log, make_engine, plain_values, print_pictures
from ...spin_core.curves import verdict
from ...spin_core.data import Dataset
from ...spin_core.game import Game, Opponent, Run, generate, play, train_baseline
from ...spin_core.settings import GenerateSettings, ModelSettings, TrainSettings
from ...spin_core.store import TensorStore
from ..host.copies import training_mode
from ..host.denoiser import ModelDenoiser, alike
from ..host.options import TrainingOptions
from ..host.sharded import ShardedPatcher
from .asked import TrainingRun
from .captions import Captions, OpponentSampling, host_sampler
from .checkpoints import file_metadata, read_weights, save_lora, save_native
from .session import Trained, learnt, make_corpus, metrics_of, with_learnt
from .trainee import Trainee, first_opponent, make_trainee
from .usual import usual_sampling


def run_train(settings: TrainSettings) -> None:
    """Plays the rounds on every process alike; the pictures and the gradients are shared out."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was learnt is kept, as after Ctrl-C
    engine = make_engine(settings)
    with torch.inference_mode():  # as the host's loaders run
        model, clip, vae = load_parts(settings)
    asked, report = asked_for(settings, model), Report()
    with training_mode(), ExitStack() as stack:
        trainee = make_trainee(model, asked, engine.num_processes if settings.shard else 1)
        captions = Captions(clip, TensorStore(settings.output / "cache"))
        with engine.main_process_first():  # it encodes, and the others read what it kept
            corpus = make_corpus(model.model, captions, vae, Dataset(settings.data), asked, report)
        if settings.shard:
            check_captions(corpus, asked, engine.num_processes)
        if engine.is_main_process:
            print(report.text())
        if settings.tracker:
            engine.init_trackers("spin", plain_values(settings))
        stack.enter_context(trainee.ready)
        stack.enter_context(trainee.player.attached())
        parent = trainee.player.opponent_hash()
        process = trainee.player.policy.process
        run = Run(corpus, asked.settings, engine, settings.output, Log(settings, engine), process=process)
        game = played(trainee, captions, run, asked)
        lora, weights = learnt(trainee.player, asked)
        metrics = metrics_of(game, asked, parent, settings.output)
        stack.close()
        if engine.is_main_process:
            save(model, Trained(lora, weights, metrics, report, ""), settings.output)
            print(verdict(metrics))
    engine.end_training()


def played(trainee: Trainee, captions: Captions, run: Run, asked: TrainingRun) -> Game:
    """The rounds, or the baseline. Between rounds player and opponent are the same: the last model, which may be whole, draws."""
    if asked.method != "spin":
        return train_baseline(trainee.player, run, asked.method)
    patcher = trainee.patchers[-1]
    sample = host_sampler(patcher, captions, asked.opponent)

    def draw(*wanted) -> torch.Tensor:
        with trainee.drawing():
            return sample(*wanted)

    together = isinstance(patcher, ShardedPatcher)
    opponent = Opponent(draw, asked.made_from()["opponent"], asked.opponent.batch, together, captions.kind)
    return play(trainee.player, opponent, run, asked.rounds)


def check_captions(corpus: Corpus, asked: TrainingRun, processes: int) -> None:
    """ValueError where one process would need more forwards than another: parts are put together on all of them at once."""
    prompts = {"", *corpus.prompts} if asked.settings.caption_dropout else set(corpus.prompts)
    rows = [row for prompt in prompts for row in corpus.context([prompt], tuple(corpus.shapes[0]))]
    if asked.settings.batch_size > processes and len(alike(rows)) > 1:
        raise ValueError(
            f"--shard takes captions of several lengths one at a time: set --batch-size to {processes}, the number of processes, "
            "and raise --accumulation"
        )


def run_generate(settings: GenerateSettings) -> None:
    """The first opponent's pictures, shared out over the processes."""
    engine = make_engine(settings)
    with torch.inference_mode():
        model, clip, vae = load_parts(settings)
    asked, report = asked_for(TrainSettings.model_construct(**dict(settings)), model), Report()
    with training_mode():
        captions = Captions(clip, TensorStore(settings.output / "cache"))
        with engine.main_process_first():
            corpus = make_corpus(model.model, captions, vae, Dataset(settings.data), asked, report)
        if engine.is_main_process:
            print(report.text())
        patcher, opponent_hash = first_opponent(model, asked)
        sample = host_sampler(patcher, captions, asked.opponent)
        opponent = Opponent(sample, asked.made_from()["opponent"], asked.opponent.batch, kind=captions.kind)
        told, process = print_pictures(engine), ModelDenoiser(patcher).process
        run = Run(corpus, asked.settings, engine, settings.output, told, process=process)
        generate(opponent, opponent_hash, run, 1)


def save(model, trained: Trained, folder: Path) -> None:
    """lora.safetensors, or model.safetensors with all weights, as the host's loaders read them."""
    metadata = {"format": "pt", **file_metadata(trained.metrics)}
    if trained.lora is not None:
        save_lora(trained.lora, folder / "lora.safetensors", metadata)
    else:
        with torch.inference_mode():
            save_native(with_learnt(model, trained), folder / "model.safetensors", metadata)


def load_parts(settings: ModelSettings) -> tuple:
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
        rank=settings.rank if settings.train == "lora" else None,
        layers=settings.lora_layers,
        resolution=settings.resolution,
        name=settings.output.name,
    )


RUNS = {"train": run_train, "generate": run_generate}
