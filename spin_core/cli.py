"""vico-spin train | generate | convert: self-play on diffusers pipelines, on one process or on many."""

import copy
import json
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..intake import Report
from ..train_core import UNET_LAYERS, LoRA, find_layers, save_tensors, shard, stack_lora, weights_hash
from .curves import verdict
from .data import Dataset
from .encoding import encode_dataset
from .game import Opponent, Progress, Run, generate, of_round, play, train_baseline
from .pipelines import (
    SHARDED_BLOCKS,
    PipelineText,
    UNetDenoiser,
    kohya_names,
    load_pipeline,
    pipeline_encoder,
    pipeline_sampler,
)
from .players import FullPlayer, LoRAPlayer
from .settings import COMMANDS, ConvertSettings, GenerateSettings, ModelSettings, TrainSettings, parse
from .store import TensorStore


def main(arguments: list[str]) -> int:
    """Runs a command. Errors that a user can mend are printed as their sentence."""
    if not arguments or arguments[0] not in COMMANDS:
        print(f"usage: vico-spin {{{'|'.join(COMMANDS)}}} --help")
        return 0 if arguments[:1] in (["--help"], ["-h"]) else 2
    run = {"train": run_train, "generate": run_generate, "convert": run_convert}[arguments[0]]
    try:
        run(parse(arguments[0], arguments[1:]))
    except (ValueError, OSError, ArithmeticError) as error:
        print(f"vico-spin {arguments[0]}: {error}", file=sys.stderr)
        return 1
    return 0


def make_engine(settings: TrainSettings | GenerateSettings):
    """Accelerate's engine: this process alone, or one of many under `accelerate launch`."""
    from accelerate import Accelerator

    training = isinstance(settings, TrainSettings)
    engine = Accelerator(
        cpu=not torch.accelerator.is_available(),  # or Accelerate overlooks the other processes of a CPU run
        mixed_precision=settings.precision if training else "no",
        gradient_accumulation_steps=settings.accumulation if training else 1,
        log_with=settings.tracker if training else None,
        project_dir=settings.output,
    )
    if training and settings.tracker and not engine.log_with:
        raise ValueError(
            f'the tracker "{settings.tracker}" is not installed: install its package, or leave --tracker out '
            "(log.jsonl holds the same numbers)"
        )
    return engine


def make_corpus(pipeline, settings: ModelSettings, engine, report: Report, pairs: bool):
    """Latents and captions. The main process encodes, the others then read what it kept."""
    store = TensorStore(settings.output / "cache")
    text = PipelineText.of(pipeline, store, engine.device)
    encoder = pipeline_encoder(pipeline, store, settings.resolution, engine.device)
    with engine.main_process_first():
        corpus = encode_dataset(Dataset(settings.data), encoder, text, report, pairs, seed=settings.seed)
        for prompt in {"", settings.negative, *corpus.prompts}:
            text.encoded(prompt)
    return corpus, text


def make_opponent(pipeline, unet, text: PipelineText, settings: ModelSettings, device) -> Opponent:
    sampler = {
        "name": "ddim",
        "steps": settings.sampling_steps,
        "cfg": settings.cfg,
        "negative": settings.negative,
    }
    return Opponent(pipeline_sampler(pipeline, unet, text, settings, device), sampler, settings.generation_batch)


def run_train(settings: TrainSettings) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was learnt is kept, as after Ctrl-C
    engine = make_engine(settings)
    pipeline = load_pipeline(settings.model, engine.device)
    report = Report()
    corpus, text = make_corpus(pipeline, settings, engine, report, settings.method == "dpo")
    if engine.is_main_process:
        print(report.text())
    if settings.tracker:
        engine.init_trackers("spin", plain_values(settings))
    if settings.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    player, drawer = make_player(pipeline, settings, engine)
    log = Log(settings, engine)
    run = Run(corpus, settings.rounds_settings(), engine, settings.output, log)
    with player.attached():
        if settings.method == "spin":
            opponent = make_opponent(pipeline, drawer, text, settings, engine.device)
            game = play(player, opponent, run, settings.rounds)
        else:
            game = train_baseline(player, run, settings.method)
    metrics = {"method": settings.method, "rounds": [[vars(step) for step in t.history] for t in game.rounds]}
    if engine.is_main_process:
        print(verdict(metrics))
    engine.end_training()


def plain_values(settings: TrainSettings) -> dict[str, str | int | float | bool]:
    """The settings as every tracker takes them: lists as text."""
    found = json.loads(settings.model_dump_json(exclude_none=True))
    return {name: value if isinstance(value, str | int | float) else str(value) for name, value in found.items()}


def make_player(pipeline, settings: TrainSettings, engine):
    """The player, and the U-Net that draws for the opponent (whole on every process, so that each draws by itself)."""
    unet, scheduler = pipeline.unet, pipeline.scheduler
    if settings.shard and (settings.train == "lora" or engine.num_processes == 1):
        raise ValueError(
            "--shard is for full training on several processes: leave it out, or run accelerate launch --num_processes 2 "
            "-m vico_spin.spin_core train --train full"
        )
    if settings.train == "lora":
        base_hash = weights_hash(unet.state_dict())
        denoiser, names = UNetDenoiser(unet, scheduler), find_layers(unet, UNET_LAYERS[settings.lora_layers])
        return LoRAPlayer(denoiser, unet, base_hash, names, settings.rank, settings.rank, settings.seed), unet
    frozen = copy.deepcopy(unet)
    if settings.shard:
        shard(unet, SHARDED_BLOCKS, engine.device.type, engine.num_processes)
    return FullPlayer(UNetDenoiser(unet, scheduler), UNetDenoiser(frozen, scheduler), unet, frozen), frozen


class Log:
    """Every step as a line of log.jsonl, to the tracker where there is one, and in short on the terminal."""

    def __init__(self, settings: TrainSettings, engine):
        self.engine, self.file = engine, settings.output / "log.jsonl"
        self.pairs = settings.batch_size * settings.accumulation
        self.steps = settings.steps

    def __call__(self, progress: Progress) -> None:
        if not self.engine.is_main_process:
            return
        if progress.report is None:
            print(f"round {progress.round_number}: {progress.done} of {progress.total} pictures", flush=True)
            return
        report = progress.report
        logged = {
            "round": progress.round_number,
            "step": report.step,
            **report.metrics,
            "grad_norm": report.grad_norm,
            "lr": report.lr,
            "images_per_second": 2 * self.pairs / report.seconds,
        }
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(logged) + "\n")
        earlier = sum(of_round(self.steps, number) for number in range(1, progress.round_number))
        self.engine.log(logged, step=earlier + report.step)
        print(f"round {progress.round_number}, step {report.step}: loss {report.loss:.4f}", flush=True)


def run_generate(settings: GenerateSettings) -> None:
    """The first opponent's pictures, shared out over the processes."""
    engine = make_engine(settings)
    pipeline = load_pipeline(settings.model, engine.device)
    report = Report()
    corpus, text = make_corpus(pipeline, settings, engine, report, pairs=False)
    if engine.is_main_process:
        print(report.text())
    opponent = make_opponent(pipeline, pipeline.unet, text, settings, engine.device)
    rounds = TrainSettings.model_construct(seed=settings.seed)
    run = Run(corpus, rounds.rounds_settings(), engine, settings.output, print_pictures(engine))
    generate(opponent, weights_hash(pipeline.unet.state_dict()), run, 1)


def print_pictures(engine):
    def on_progress(progress: Progress) -> None:
        if engine.is_main_process:
            print(f"{progress.done} of {progress.total} pictures of this process", flush=True)

    return on_progress


def run_convert(settings: ConvertSettings) -> None:
    """The rounds' results as one LoRA, or merged into a U-Net folder."""
    results = [load_file(path) for path in result_files(settings.run, settings.rounds)]
    is_lora = any(key.endswith(".lora_down.weight") for key in results[0])
    if settings.to == "lora":
        if not is_lora:
            raise ValueError(f'"{settings.run}" is a full fine-tune: convert it to diffusers')
        save_tensors(settings.output, kohya_names(stack_lora(results)), {"format": "pt"})
        return
    unet = load_pipeline(settings.model, torch.device("cpu")).unet
    if is_lora:
        merge(unet, stack_lora(results))
    else:
        unet.load_state_dict(results[-1])
    unet.save_pretrained(settings.output / "unet")


def result_files(run: Path, rounds: int | None) -> list[Path]:
    """The results of rounds 1 … rounds. Raises: ValueError where one is missing."""
    files = sorted(
        run.glob("round-*/result.safetensors"), key=lambda path: int(path.parent.name.removeprefix("round-"))
    )
    if not files or (rounds is not None and len(files) < rounds):
        raise ValueError(
            f'"{run}" has {len(files)} finished rounds' + (f", not {rounds}" if rounds else ": nothing to convert")
        )
    return files[:rounds]


def merge(unet, state: dict[str, torch.Tensor]) -> None:
    """Adds a LoRA of this package to the U-Net's weights for good."""
    prefix, end = "diffusion_model.", ".lora_down.weight"
    downs = {key.removeprefix(prefix).removesuffix(end): tensor for key, tensor in state.items() if key.endswith(end)}
    rank = len(next(iter(downs.values())))
    lora = LoRA(unet, list(downs), rank)
    lora.load_lora_state_dict(state)
    lora.merge_into_weights()
