"""The command line's settings: every one a flag, a line of a settings file, or its default. Needs pydantic-settings."""

import re
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict, SettingsError, TomlConfigSettingsSource

from ..train_core import LoraLayers
from .game import RoundSettings
from .steps import Loss, PairOptions


class FileSettings(BaseSettings):
    """Flags win over the file that --config names; the environment is not read, so that a command says all there is."""

    model_config = SettingsConfigDict(cli_kebab_case=True, extra="forbid", cli_implicit_flags=True)
    config: Path | None = Field(
        None, description="Settings file (TOML) with the names of these flags, underscores for dashes."
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls, init_settings, env_settings, dotenv_settings, file_secret_settings
    ):
        return init_settings, TomlConfigSettingsSource(settings_cls, toml_file=settings_cls.settings_file)


def config_of(arguments: list[str]) -> str | None:
    """The file after --config, looked for before the settings themselves are read."""
    for place, argument in enumerate(arguments):
        if argument == "--config" and place + 1 < len(arguments):
            return arguments[place + 1]
        if argument.startswith("--config="):
            return argument.removeprefix("--config=")
    return None


class PipelineSettings(FileSettings):
    """Which model."""

    model: str = Field(description="Folder of a diffusers pipeline (SD1.x, SD2.x or SDXL), or its name on the hub.")
    variant: str | None = Field(None, description="Which of the model's files, such as fp16; they are read as float32.")
    hub: bool = Field(False, description="Fetch the model from the hub where it is not on this machine.")


OF_A_FILE, OF_A_PIPELINE = ("text_encoder", "vae", "comfyui"), ("lora", "variant", "hub")


class ModelSettings(PipelineSettings):
    """Which model, and how it draws."""

    model: str | None = Field(
        None, description="Folder of a diffusers pipeline (SD1.x, SD2.x or SDXL), or its name on the hub."
    )
    checkpoint: Path | None = Field(
        None, description="Instead of --model: a file as ComfyUI loads it, of any family that Train SPIN trains."
    )
    text_encoder: list[Path] = Field([], description="With --checkpoint: text encoders' files, unless it holds them.")
    text_type: str = Field(
        "stable_diffusion", description="With --text-encoder: their type as in Load CLIP: flux, qwen_image, lumina2, …"
    )
    vae: Path | None = Field(None, description="With --checkpoint: the VAE's file, unless it holds one.")
    comfyui: Path | None = Field(None, description="With --checkpoint: folder of the ComfyUI whose classes build it.")
    processes: int | None = Field(None, ge=1, description="Refuses to run on another number of processes than this.")
    train: Literal["full", "lora"] = Field("full", description="What the run trains: all of the network, or a LoRA.")
    output: Path = Field(
        description="Folder of the run: pictures, checkpoints, results, log.jsonl. The same command goes on there."
    )
    data: Path = Field(
        description="Pictures with captions: a folder, metadata.jsonl/.csv, webdataset .tar, Pick-a-Pic parquet, or a prompt list."
    )
    resolution: int = Field(
        512,
        ge=64,
        le=4096,
        description="Pictures are scaled to about resolution x resolution pixels, in aspect-ratio buckets.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Of noise, timesteps, order and the opponent's pictures.")
    sampling_steps: int = Field(50, ge=1, le=999, description="Sampling steps of the opponent (DDIM, eta 0).")
    cfg: float = Field(
        7.5, ge=1, le=100, description="Guidance of the opponent; 1 is what the theory has, and twice as fast."
    )
    negative: str = Field("", description="Negative prompt of the opponent.")
    generation_batch: int = Field(8, ge=1, description="Pictures that each process draws at once.")

    @model_validator(mode="after")
    def one_model(self):
        if (self.model is None) == (self.checkpoint is None):
            raise ValueError("name one model: --model FOLDER of diffusers, or --checkpoint FILE with --comfyui PATH")
        partner, names = ("--checkpoint", OF_A_FILE) if self.checkpoint is None else ("--model", OF_A_PIPELINE)
        if stray := next((name for name in names if getattr(self, name, None)), None):
            raise ValueError(f"--{stray.replace('_', '-')} goes with {partner} alone: leave it out")
        if self.checkpoint is not None and self.comfyui is None:
            raise ValueError("--checkpoint is read by ComfyUI's classes: add --comfyui PATH")
        return self


class TrainSettings(ModelSettings):
    """Trains: self-play, or its baselines. Under `accelerate launch` on as many processes as there are."""

    method: Literal["spin", "sft", "dpo", "kto", "sft+dpo"] = Field(
        "spin",
        description="Self-play; supervised fine-tuning; on pairs Diffusion-DPO, or DPO from an SFT start; on pairs or thumbs Diffusion-KTO.",
    )
    loss: Loss = Field(
        "pair",
        description="With --method spin: SPIN's by the step (pair) or along whole trajectories, SePPO's, or KTO's.",
    )
    rounds: int = Field(1, ge=1, description="Rounds of self-play.")
    lora: Path | None = Field(None, description="A LoRA to start from: it is merged into the model first.")
    rank: int = Field(16, ge=1, description="Rank of the LoRA.")
    lora_layers: LoraLayers = Field(
        "attention", description="Layers that the LoRA changes; all: every linear and convolution layer."
    )
    shard: bool = Field(
        False,
        description="The network's weights shared out over the processes (FSDP2); in full training the player's, with their "
        "gradients and moments.",
    )
    steps: list[int] = Field([500], description="Optimiser steps, one value or one a round: the last one stays.")
    beta: list[float] = Field(
        [2000.0, 5000.0], description="Pull towards the opponent, one a round (means over pixels, kappa 1/2)."
    )
    lr: list[float] = Field([2e-5], description="Peak learning rate, one a round. Never scaled by the batch.")
    batch_size: int = Field(8, ge=1, description="Pairs in one forward of all processes together.")
    accumulation: int = Field(1, ge=1, description="Forwards in one optimiser step.")
    warmup_steps: int = Field(0, ge=0, description="Steps over which the rate rises.")
    decay: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="How the rate falls after the warm-up."
    )
    weight_decay: float = Field(0.01, ge=0, lt=1, description="AdamW's.")
    max_grad_norm: float | None = Field(
        1.0, gt=0, allow_inf_nan=False, description="Gradients are clipped to this norm; null leaves them."
    )
    checkpoint_every: int = Field(100, ge=1, description="Steps between checkpoints.")
    precision: Literal["no", "bf16", "fp16"] = Field(
        "no", description="Autocast of the forward; weights and loss stay float32."
    )
    gradient_checkpointing: bool = Field(False, description="Less memory, more time: blocks are computed again.")
    share_noise: bool = Field(True, description="Real and generated picture get the same noise.")
    caption_dropout: float = Field(0.0, ge=0, le=1, description="Share of pairs with an empty caption, on both sides.")
    low_memory: bool = Field(False, description="One side of the pair at a time: the same gradient, one forward more.")
    margin_clamp: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Pairs with |z| beyond this no longer pull."
    )
    safeguard: float | None = Field(
        None, ge=0, le=1, description="SDPO's margin mu: the real side's error cannot rise."
    )
    sft_weight: float = Field(0.0, ge=0, le=1000, description="Adds so much of the plain loss on the real picture.")
    tracker: str | None = Field(None, description="A tracker of Accelerate (tensorboard, wandb, …) beside log.jsonl.")

    @model_validator(mode="after")
    def one_loss(self):
        if self.method != "spin" and self.loss != "pair":
            raise ValueError(f"--loss goes with --method spin alone: leave it out, {self.method} has its own")
        return self

    def rounds_settings(self) -> RoundSettings:
        """These settings as the game takes them."""
        loss = "kto" if self.method == "kto" else self.loss
        return RoundSettings(
            steps=tuple(self.steps),
            beta=tuple(self.beta),
            lr=tuple(self.lr),
            batch_size=self.batch_size,
            warmup_steps=self.warmup_steps,
            decay=self.decay,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
            checkpoint_every=self.checkpoint_every,
            share_noise=self.share_noise,
            caption_dropout=self.caption_dropout,
            low_memory=self.low_memory,
            options=PairOptions(self.margin_clamp, self.safeguard, self.sft_weight, loss),
            seed=self.seed,
        )


OF_PAIRS = ("low_memory", "margin_clamp", "safeguard", "sft_weight")


def check_idle(settings: TrainSettings, flags: set[str]) -> None:
    """ValueError for a flag that would do nothing. Lines of a settings file, which may be for several methods, are let be."""
    stepwise = settings.loss in ("pair", "seppo") and settings.method != "kto"
    idle = [
        (settings.train != "lora", ("rank", "lora_layers"), "--train lora"),
        (settings.method != "spin", ("rounds",), "--method spin"),
        (settings.method == "sft", OF_PAIRS, "a method with pairs"),
        (not stepwise, ("margin_clamp", "safeguard"), "pairs that are learnt step by step"),
        (settings.loss == "trajectory", ("sft_weight",), "a loss that is learnt step by step"),
    ]
    for is_idle, names, partner in idle:
        stray = [name for name in names if name in flags]
        if is_idle and stray:
            raise ValueError(f"--{stray[0].replace('_', '-')} goes with {partner} alone: leave it out")


class GenerateSettings(ModelSettings):
    """Draws the first opponent's pictures alone, for instance on other machines than those that train."""

    rounds: Literal[1] = Field(1, description="Only round 1's opponent exists before training.")


class ConvertSettings(PipelineSettings):
    """Turns what a run learnt, also one that was stopped, into what others read."""

    run: Path = Field(description="Folder of the run.")
    to: Literal["lora", "diffusers"] = Field(
        "diffusers",
        description="lora: one file for ComfyUI (LoRA runs). diffusers: a U-Net folder with everything merged.",
    )
    rounds: int | None = Field(
        None, ge=1, description="How many rounds to take; by default all, the last one as far as it came."
    )
    output: Path = Field(description="File (lora) or folder (diffusers) to write.")


COMMANDS = {"train": TrainSettings, "generate": GenerateSettings, "convert": ConvertSettings}


def parse(command: str, arguments: list[str]) -> FileSettings:
    """The settings of a command from its flags and file. Exits with the usage where a flag is unknown.

    Raises: FileNotFoundError where --config names no file; ValueError where a setting cannot be.
    """
    config = config_of(arguments)
    if config is not None and not Path(config).is_file():
        raise FileNotFoundError(f'there is no settings file "{config}" (--config)')

    class Parsed(COMMANDS[command]):
        settings_file: ClassVar[str | None] = config

    Parsed.__doc__ = COMMANDS[command].__doc__
    flags = {name.removeprefix("--").partition("=")[0].replace("-", "_") for name in arguments if name.startswith("--")}
    try:
        found = CliApp.run(Parsed, cli_args=arguments, cli_exit_on_error=True)
    except ValidationError as error:
        raise ValueError("; ".join(map(told, error.errors()))) from error
    except SettingsError as error:  # of a list, whose flag it names
        flag = re.search(r'field "(\w+)"', str(error))[1]
        raise ValueError(
            f"--{flag} is no list of numbers: write them with a point, as 0.0001, and a comma between two rounds"
        ) from error
    if command == "train":
        check_idle(found, flags)
    return found


def told(error) -> str:
    """One of pydantic's errors as a person typed it: the flag, its value, what is wrong; of several flags our own sentence."""
    if not error["loc"]:
        return str(error["ctx"]["error"])
    flag = str(error["loc"][0]).replace("_", "-")
    return f"--{flag} {error['input']}: {error['msg'][0].lower()}{error['msg'][1:]}"
