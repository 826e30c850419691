"""vico-spin train | generate | convert: self-play on diffusers pipelines, on one process or on many."""

import copy
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from ..intake import LIMITS, Report, check_file
from ..train_core import (
    CheckpointFolder,
    find_layers,
    lora_delta,
    lora_of_parameters,
    read_state,
    save_tensors,
    shard,
    stack_lora,
    unet_layers,
    weights_hash,
)
from ..train_core.lora_dialects import peft_settings, plain_lora, with_alphas
from .curves import verdict
from .data import Dataset
from .encoding import encode_dataset, taken_by
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

START = "start.safetensors"  # the LoRA that a run started from
PATIENCE = timedelta(days=7)  # of processes that wait while one encodes all pictures: NCCL's own is 10 minutes


def main(arguments: list[str]) -> int:
    """Runs a command. Errors that a user can mend are printed as their sentence."""
    if not arguments or arguments[0] not in COMMANDS:
        print(f"usage: vico-spin {{{'|'.join(COMMANDS)}}} --help")
        return 0 if arguments[:1] in (["--help"], ["-h"]) else 2
    return told(arguments[0], lambda: RUNS[arguments[0]](parse(arguments[0], arguments[1:])))


def told(command: str, run: Callable[[], None]) -> int:
    """Runs it. Returns 1 where it fails, with the error's sentence printed."""
    try:
        run()
    except (ValueError, OSError, ArithmeticError) as error:
        print(f"vico-spin {command}: {error}", file=sys.stderr)
        return 1
    return 0


def make_engine(settings: TrainSettings | GenerateSettings):
    """Accelerate's engine: this process alone, or one of many under `accelerate launch`."""
    from accelerate import Accelerator, InitProcessGroupKwargs

    training = isinstance(settings, TrainSettings)
    engine = Accelerator(
        cpu=not torch.accelerator.is_available(),  # or Accelerate overlooks the other processes of a CPU run
        mixed_precision=settings.precision if training else "no",
        gradient_accumulation_steps=settings.accumulation if training else 1,
        log_with=settings.tracker if training else None,
        project_dir=settings.output,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    if training and settings.tracker and not engine.log_with:
        raise ValueError(
            f'the tracker "{settings.tracker}" is not installed: install its package, or leave --tracker out '
            "(log.jsonl holds the same numbers)"
        )
    check_processes(engine, settings.processes)
    if training and settings.shard and engine.num_processes == 1:
        raise ValueError("--shard is for several processes, and this runs on 1: leave it out, or launch more")
    return engine


def check_processes(engine, wanted: int | None) -> None:
    """Says on how many processes the command runs. ValueError where that is not what was asked for.

    `accelerate launch --cpu --num_processes 2` starts one process with a meeting point for others, and no others.
    """
    found = engine.num_processes
    alone = found == 1 and os.getenv("MASTER_ADDR") is not None and os.getenv("WORLD_SIZE") is None
    if alone or wanted not in (None, found):
        asked = "several processes were asked for" if wanted is None else f"--processes is {wanted}"
        raise ValueError(
            f"{asked}, and this runs on {found}: on CPUs launch with `torchrun --nproc_per_node N -m vico_spin train …`, on GPUs "
            "with `accelerate launch --num_processes N -m vico_spin train …`"
        )
    if engine.is_main_process:
        print(f"on {found} process{'es' if found > 1 else ''}", flush=True)


def make_corpus(pipeline, settings: ModelSettings, engine, report: Report, method: str):
    """Latents and captions. The main process encodes, the others then read what it kept."""
    store = TensorStore(settings.output / "cache")
    text = PipelineText.of(pipeline, store, engine.device)
    encoder = pipeline_encoder(pipeline, store, settings.resolution, engine.device)
    with engine.main_process_first():
        dataset = Dataset(settings.data)
        take, text_hash = taken_by(method, dataset), text.encoders_hash
        corpus = encode_dataset(dataset, encoder, text, report, take, seed=settings.seed, text_hash=text_hash)
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


def process_of(pipeline) -> str:
    """Hash of what the U-Net predicts, and of its noise schedule."""
    scheduler = pipeline.scheduler
    return weights_hash({scheduler.config.prediction_type: scheduler.alphas_cumprod})


def run_train(settings: TrainSettings) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was learnt is kept, as after Ctrl-C
    rounds = settings.rounds_settings()  # what cannot be is said before a model is read
    engine = make_engine(settings)
    pipeline = load_pipeline(settings, engine.device)
    report = Report()
    corpus, text = make_corpus(pipeline, settings, engine, report, settings.method)
    if engine.is_main_process:
        print(report.text())
    if settings.tracker:
        engine.init_trackers("spin", plain_values(settings))
    if settings.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    start_from(pipeline.unet, settings.lora, settings.output, engine)
    player, drawer = make_player(pipeline, settings, engine)
    log = Log(settings, engine)
    run = Run(corpus, rounds, engine, settings.output, log, process=process_of(pipeline))
    with player.attached():
        if settings.method == "spin":
            opponent = make_opponent(pipeline, drawer, text, settings, engine.device)
            opponent = replace(opponent, together=settings.shard and settings.train == "lora")
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
    """The player, and the U-Net that draws for the opponent: in full training whole on every process, which draws by itself."""
    unet, scheduler = pipeline.unet, pipeline.scheduler
    base_hash, frozen = weights_hash(unet.state_dict()), copy.deepcopy(unet) if settings.train == "full" else None
    if settings.shard:
        blocks = [module for module in unet.modules() if type(module).__name__ in SHARDED_BLOCKS]
        shard(unet, blocks, engine.device.type, engine.num_processes)
    if settings.train == "lora":
        denoiser, names = UNetDenoiser(unet, scheduler), find_layers(unet, unet_layers(settings.lora_layers))
        how = (settings.rank, settings.rank, settings.seed, engine.device)
        return LoRAPlayer(denoiser, unet, base_hash, names, *how), unet
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
    pipeline = load_pipeline(settings, engine.device)
    report = Report()
    corpus, text = make_corpus(pipeline, settings, engine, report, "spin")
    if engine.is_main_process:
        print(report.text())
    opponent = make_opponent(pipeline, pipeline.unet, text, settings, engine.device)
    rounds = TrainSettings.model_construct(seed=settings.seed)
    told = print_pictures(engine)
    run = Run(corpus, rounds.rounds_settings(), engine, settings.output, told, process=process_of(pipeline))
    generate(opponent, weights_hash(pipeline.unet.state_dict()), run, 1)


def print_pictures(engine):
    def on_progress(progress: Progress) -> None:
        if engine.is_main_process:
            print(f"{progress.done} of {progress.total} pictures of this process", flush=True)

    return on_progress


def run_convert(settings: ConvertSettings) -> None:
    """The rounds' results as one LoRA, or merged into a U-Net folder."""
    results = results_of(settings.run, settings.rounds)
    is_lora = any(key.endswith(".lora_down.weight") for key in results[-1])
    if settings.to == "lora":
        if not is_lora:
            raise ValueError(f'"{settings.run}" is a full fine-tune: convert it to diffusers')
        save_tensors(settings.output, kohya_names(stack_lora(results)), {"format": "pt"})
        return
    unet = load_pipeline(settings, torch.device("cpu")).unet
    if is_lora:
        merge(unet, stack_lora(results))
    else:
        unet.load_state_dict(results[-1])
    unet.save_pretrained(settings.output / "unet")


def results_of(run: Path, rounds: int | None) -> list[dict[str, torch.Tensor]]:
    """What a run started from and what its rounds learnt, the last one as far as it came.

    rounds: take so many, all of them finished. Raises: ValueError where one is missing.
    """
    files = sorted(
        run.glob("round-*/result.safetensors"), key=lambda path: int(path.parent.name.removeprefix("round-"))
    )
    stopped = None if rounds else stopped_round(run, len(files) + 1)
    if len(files) < (rounds or 1) and stopped is None:
        raise ValueError(
            f'"{run}" has {len(files)} finished rounds' + (f", not {rounds}" if rounds else ": nothing to convert")
        )
    start = [load_file(run / START)] if (run / START).is_file() else []
    return [*start, *map(load_file, files[:rounds]), *([stopped] if stopped else [])]


def stopped_round(run: Path, number: int) -> dict[str, torch.Tensor] | None:
    """What a round that has not come to its end has learnt so far; None where it has not begun."""
    checkpoints = CheckpointFolder(run / f"round-{number}")
    if not checkpoints.steps():
        return None
    state = read_state(checkpoints.file(checkpoints.steps()[-1]))
    print(f"round {number} stopped after step {state['step']}: what it had learnt by then is taken")
    return lora_of_parameters(state["weights"]) if state["identity"]["player"].startswith("LoRA") else state["weights"]


def merge(unet, state: dict[str, torch.Tensor]) -> None:
    """Adds a LoRA of this package to the U-Net's weights for good."""
    with torch.no_grad():
        for stem, up, down in lora_pairs(state):
            weight, alpha = unet.get_submodule(stem).weight, float(state[f"diffusion_model.{stem}.alpha"])
            weight += lora_delta(up, down, alpha / len(down)).to(weight)


def start_from(unet, path: Path | None, output: Path, engine) -> None:
    """The LoRA merged into the U-Net before training. A run that begins keeps it in its folder, where convert puts it to the rest.

    Raises: ValueError where the file is no LoRA of this model.
    """
    lora = None if path is None else read_lora(path, unet)
    if lora is not None:
        merge(unet, {key: tensor.to(engine.device) for key, tensor in lora.items()})
    if not engine.is_main_process or any(output.glob("round-*")):
        return
    if lora is None:
        (output / START).unlink(missing_ok=True)
    else:
        save_tensors(output / START, lora, {"format": "pt"})


def read_lora(path: Path, unet) -> dict[str, torch.Tensor]:
    """A plain LoRA on the U-Net's layers."""
    check_file(path, LIMITS.weights_bytes)
    try:
        state = load_file(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f'"{path.name}" is no whole safetensors file ({error}): take another LoRA') from error
    state = with_alphas(state, peft_settings(path, metadata), path.name)
    lora = plain_lora(state, find_layers(unet, "."), path.name)
    for stem, up, down in lora_pairs(lora):
        weight = unet.get_submodule(stem).weight
        if (len(up), down[0].numel()) != (len(weight), weight[0].numel()):
            raise ValueError(
                f'"{path.name}" is of another model: its {stem} changes weights of {len(up)} x {down[0].numel()}, and here they '
                f"are {len(weight)} x {weight[0].numel()}"
            )
    return lora


def lora_pairs(state: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """(layer, up, down) of a LoRA of this package."""
    prefix, end = "diffusion_model.", ".lora_down.weight"
    for stem in [key.removesuffix(end) for key in state if key.endswith(end)]:
        yield stem.removeprefix(prefix), state[f"{stem}.lora_up.weight"], state[f"{stem}{end}"]


RUNS = {"train": run_train, "generate": run_generate, "convert": run_convert}
