"""SPIN's nodes: a data set, a checkpoint from the hub, the game, its baselines, saving, and what the curves say."""

import json
import os
from pathlib import Path

import comfy.samplers
import folder_paths
import numpy
import torch
from comfy_api.latest import io, ui
from PIL import Image
from server import PromptServer

from spin_core.curves import draw_curves, verdict
from spin_core.data import Dataset, Listed, Picture, Report, Sample, contact_sheet, png_of
from spin_core.game import RoundSettings
from spin_core.steps import PairOptions

from . import spin_files
from .spin_training import OpponentSampling, TrainOptions, file_metadata, train, with_learnt

DatasetSocket = io.Custom("SPIN_DATASET")
LoraSocket = io.Custom("LORA_MODEL")
LossSocket = io.Custom("LOSS_MAP")
DATA_FILES = {".jsonl", ".csv", ".parquet", ".txt", ".tsv", ".json"}
FROM_GRAPH = "pictures from the graph"
SHEET_PICTURES = 24
FORMATS = ["ComfyUI LoRA", "native U-Net", "diffusers folder"]


def data_places() -> list[str]:
    """Folders of the input directory, and the lists and tables in it."""
    root = Path(folder_paths.get_input_directory())
    files = [file.relative_to(root).as_posix() for file in sorted(root.glob("*")) if file.suffix.lower() in DATA_FILES]
    return [FROM_GRAPH, *folder_paths.get_input_subfolders(), *files]


class SPINDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SPINDataset",
            display_name="SPIN Dataset",
            category="SPIN",
            description="Pictures with captions for self-play: a folder, a metadata file, Pick-a-Pic, or pictures of the graph. Says what it left out.",
            search_aliases=["dataset", "captions", "pick-a-pic", "kohya", "finetune"],
            inputs=[
                io.Combo.Input(
                    "source",
                    options=data_places(),
                    tooltip="A folder or file of ComfyUI's input directory: pictures with .txt captions beside them (a subfolder 10_name is read ten times), "
                    "a folder with metadata.jsonl or metadata.csv, .parquet of Pick-a-Pic, or a list of prompts.",
                ),
                io.Image.Input("images", optional=True, tooltip="Pictures of the graph, where the source says so."),
                io.String.Input(
                    "captions",
                    multiline=True,
                    optional=True,
                    tooltip="For pictures of the graph: one line a picture, or a single line for all.",
                ),
                io.Image.Input(
                    "rejected",
                    optional=True,
                    tooltip="A worse picture for each of the graph's, in the same order: the pairs that DPO needs.",
                ),
            ],
            outputs=[
                DatasetSocket.Output("dataset", tooltip="For Train SPIN and Train Baseline."),
                io.String.Output(
                    "report", display_name="report", tooltip="What was found, and what was left out and why."
                ),
                io.Image.Output(
                    "contact_sheet", display_name="contact sheet", tooltip="The first pictures that were found."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, source, images=None, captions="", rejected=None):
        """Reads again when a file of the folder has changed."""
        if source == FROM_GRAPH:
            return source
        path = Path(folder_paths.get_input_directory()) / source
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        return [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files]

    @classmethod
    def execute(cls, source, images=None, captions="", rejected=None) -> io.NodeOutput:
        if source == FROM_GRAPH:
            dataset = listed(images, captions, rejected)
        else:
            dataset = Dataset(Path(folder_paths.get_input_directory()) / source)
        report, first = Report(), []
        for sample in dataset.samples(report):
            if sample.image is not None and len(first) < SHEET_PICTURES:
                first.append(sample.image)
        say(cls, report.text())
        sheet = as_image(contact_sheet(first))
        return io.NodeOutput(dataset, report.text(), sheet, ui=ui.PreviewImage(sheet, cls=cls))


def listed(images, captions: str, rejected=None) -> Listed:
    """Pictures [B, H, W, 3] of the graph with their captions, and the worse ones of preference pairs."""
    if images is None:
        raise ValueError(f'the source is "{FROM_GRAPH}": connect images, or choose a folder')
    lines = [line.strip() for line in captions.splitlines() if line.strip()]
    if len(lines) not in (1, len(images)):
        raise ValueError(f"{len(images)} pictures have {len(lines)} captions: write one line a picture, or one for all")
    if rejected is not None and len(rejected) != len(images):
        raise ValueError(f"{len(images)} pictures have {len(rejected)} rejected ones: each needs its own")
    lines = lines * len(images) if len(lines) == 1 else lines
    better = graph_pictures(images, "picture")
    worse = [None] * len(better) if rejected is None else graph_pictures(rejected, "rejected picture")
    label = None if rejected is None else 1.0
    return Listed(tuple(Sample(*sample, label) for sample in zip(lines, better, worse, strict=True)))


def graph_pictures(images, name: str) -> list[Picture]:
    """IMAGE [B, H, W, 3] as pictures of the data set."""
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return [Picture(f"{name} {number}", png_of(Image.fromarray(p))) for number, p in enumerate(pixels, start=1)]


def as_image(picture: Image.Image) -> torch.Tensor:
    """PIL to IMAGE, [1, H, W, 3]."""
    return torch.from_numpy(numpy.asarray(picture.convert("RGB"), dtype=numpy.float32) / 255)[None]


class LoadSPINCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SPINLoadCheckpoint",
            display_name="Load SPIN Checkpoint",
            category="SPIN",
            description="Loads what self-play has learnt: a U-Net (diffusers or native, a folder as downloaded from the hub) or a LoRA.",
            search_aliases=["SPIN-Diffusion", "diffusers unet", "UCLA-AGI", "dpo"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=spin_files.checkpoint_names(),
                    tooltip="A file of models/spin, output/spin, models/diffusion_models or models/loras. SPIN-Diffusion-iter1 and its like go into models/spin as they are.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="With a base model: how far to go from it (0) to the checkpoint (1). A U-Net without a base is loaded as it is.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The base: needed for a LoRA; for a U-Net only where it should be mixed with its base.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model", tooltip="Use it with the base's own CLIP and VAE: self-play changes the U-Net alone."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint, strength, model=None):
        return os.path.getmtime(spin_files.path_of(checkpoint))

    @classmethod
    def execute(cls, checkpoint, strength, model=None) -> io.NodeOutput:
        if strength == 0 and model is not None:
            return io.NodeOutput(model)
        return io.NodeOutput(spin_files.load_onto(spin_files.path_of(checkpoint), model, strength))


def training_inputs() -> list:
    """What both trainers ask for."""
    return [
        io.Model.Input("model", tooltip="Start and, frozen, the first opponent. It stays as it is; LoRAs on it count as part of it."),
        io.Clip.Input("clip", tooltip="Reads the captions. It is not trained."),
        io.Vae.Input("vae", tooltip="Turns the pictures into latents. It is not trained."),
        DatasetSocket.Input("dataset", tooltip="The real pictures with their captions."),
        io.String.Input("run_name", default="spin", tooltip="Folder in output/spin/runs. The same inputs again go on where the run stopped."),
        io.Combo.Input("train", options=["LoRA", "full"], tooltip="LoRA: small, and the opponent costs no second copy. full: all weights in float32, and two copies of them."),
        io.String.Input("steps", default="500", tooltip="Optimiser steps of each round; one number, or one a round: 50, 500, 200. The last one stays."),
        io.String.Input("learning_rate", default="2e-5", tooltip="Peak rate of each round. 2e-5 is the paper's, for full training."),
        io.Int.Input("batch_size", default=4, min=1, max=512, tooltip="Pairs in one forward."),
        io.Int.Input("accumulation", default=1, min=1, max=1024, tooltip="Batches in one optimiser step."),
        io.Int.Input("resolution", default=512, min=64, max=2048, step=64, tooltip="Pictures are scaled to about resolution x resolution pixels, in buckets of their own aspect ratio."),
        io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=False, tooltip="Of noise, timesteps, order and the opponent's pictures."),
        io.Int.Input("rank", default=16, min=1, max=256, tooltip="Rank of the LoRA."),
        io.String.Input("preview_prompts", multiline=True, default="", tooltip="One a line; drawn with the same seeds every time, so that you see what changes."),
        io.Int.Input("preview_every", default=50, min=0, max=10000, tooltip="Steps between previews. 0: none."),
        io.Int.Input("warmup_steps", default=0, min=0, max=100000, advanced=True, tooltip="Steps over which the rate rises from 0. The paper: 200."),
        io.Combo.Input("decay", options=["constant", "linear", "cosine"], advanced=True, tooltip="How the rate falls after the warm-up."),
        io.Combo.Input("precision", options=["fp32", "bf16"], advanced=True, tooltip="bf16 runs the forward in half precision; weights and loss stay in float32."),
        io.Boolean.Input("gradient_checkpointing", default=False, advanced=True, tooltip="Less memory, more time: blocks are computed again in the backward pass."),
        io.Float.Input("caption_dropout", default=0.0, min=0.0, max=1.0, step=0.05, advanced=True, tooltip="Share of pairs trained with an empty caption; both sides of a pair alike."),
        io.Int.Input("checkpoint_every", default=100, min=1, max=100000, advanced=True, tooltip="Steps between checkpoints on disk."),
        io.String.Input("negative", default="", advanced=True, tooltip="Negative prompt for opponent and previews."),
        io.Int.Input("sampling_steps", default=50, min=1, max=1000, tooltip="Sampling steps for the opponent's pictures and the previews."),
        io.Float.Input("cfg", default=7.5, min=1.0, max=30.0, step=0.1, tooltip="Guidance of the opponent. 7.5 draws its best pictures; 1 is what the theory has, and twice as fast."),
        io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS, default="ddim", advanced=True, tooltip="Sampler of the opponent and the previews."),
        io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, default="ddim_uniform", advanced=True, tooltip="Scheduler of the opponent and the previews."),
    ]  # fmt: skip


def training_outputs() -> list:
    return [
        io.Model.Output("model", tooltip="The model with what was learnt. Connect it to another trainer to go on."),
        LoraSocket.Output("lora", tooltip="What was learnt, as a LoRA (all rounds in one). Only with LoRA."),
        LossSocket.Output("loss", tooltip="The loss of every step, for the host's loss graph."),
        io.String.Output(
            "metrics", display_name="metrics", tooltip="Everything that was logged, for SPIN Curves and Save SPIN."
        ),
    ]


def per_round(text: str, name: str, kind) -> tuple:
    """ "2000, 5000" as numbers, one a round."""
    try:
        return tuple(kind(part) for part in text.replace(";", ",").split(",") if part.strip()) or (kind("none"),)
    except ValueError as error:
        raise ValueError(
            f'{name} "{text}" is no list of numbers: write one, or one a round, as in "2000, 5000"'
        ) from error


def run_training(
    cls,
    model,
    clip,
    vae,
    dataset,
    method,
    beta,
    options,
    rounds=1,
    opponent_batch=4,
    share_noise=True,
    low_memory=False,
    **values,
):
    """From the node's inputs to its outputs."""
    settings = RoundSettings(
        steps=per_round(values["steps"], "steps", int),
        beta=per_round(beta, "beta", float),
        lr=per_round(values["learning_rate"], "learning_rate", float),
        batch_size=values["batch_size"],
        warmup_steps=values["warmup_steps"],
        decay=values["decay"],
        checkpoint_every=values["checkpoint_every"],
        caption_dropout=values["caption_dropout"],
        share_noise=share_noise,
        low_memory=low_memory,
        options=options,
        seed=values["seed"],
    )
    asked = TrainOptions(
        method=method,
        rounds=rounds,
        adapter=values["train"] == "LoRA",
        rank=values["rank"],
        alpha=float(values["rank"]),
        resolution=values["resolution"],
        accumulation=values["accumulation"],
        precision="no" if values["precision"] == "fp32" else values["precision"],
        checkpointing=values["gradient_checkpointing"],
        run_name=values["run_name"],
        preview_prompts=tuple(line.strip() for line in values["preview_prompts"].splitlines() if line.strip()),
        preview_every=values["preview_every"],
        opponent=OpponentSampling(
            values["sampler_name"], values["scheduler"], values["sampling_steps"], values["cfg"], values["negative"]
        ),
        opponent_batch=opponent_batch,
    )
    trained = train(model, clip, vae, dataset, settings, asked, lambda text: say(cls, text))
    losses = [step["metrics"]["loss"] for steps in trained.metrics["rounds"] for step in steps]
    metrics = json.dumps(trained.metrics)
    say(cls, f"{trained.report.text()}\n{verdict(trained.metrics)}")
    return io.NodeOutput(with_learnt(model, trained), trained.lora, {"loss": losses}, metrics)


def say(cls, text: str) -> None:
    """A word on the node itself."""
    if cls.hidden.unique_id is not None:
        PromptServer.instance.send_progress_text(text, cls.hidden.unique_id)


class TrainSPIN(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SPINTrain",
            display_name="Train SPIN",
            category="SPIN",
            description="Self-play: the model draws a picture for every caption, then learns to prefer the real one; the result is the next round's opponent. "
            "Chain two of these to continue the game.",
            search_aliases=["self-play", "finetune", "train lora", "alignment", "SPIN-Diffusion"],
            inputs=[
                *training_inputs(),
                io.Int.Input("rounds", default=1, min=1, max=20, tooltip="Rounds to play. The paper plays 3; after each, the player becomes the opponent."),
                io.String.Input("beta", default="2000, 5000", tooltip="How strongly the player is held to its opponent, one a round; the last one stays. Errors are means over pixels and kappa is 1/2, as in Diffusion-DPO's own code."),
                io.Int.Input("opponent_batch", default=4, min=1, max=256, tooltip="Pictures that the opponent draws at once."),
                io.Boolean.Input("share_noise", default=True, advanced=True, tooltip="Real and generated picture get the same noise."),
                io.Boolean.Input("low_memory", default=False, advanced=True, tooltip="One side of the pair at a time: the same gradient from fewer activations, one forward more."),
                io.Float.Input("sft_weight", default=0.0, min=0.0, max=1000.0, step=0.1, advanced=True, tooltip="Adds so much of the plain denoising loss on the real picture."),
                io.Float.Input("margin_clamp", default=0.0, min=0.0, max=1000.0, step=0.5, advanced=True, tooltip="Pairs whose logit is beyond this no longer pull. 0: off."),
                io.Float.Input("safeguard", default=-1.0, min=-1.0, max=1.0, step=0.05, advanced=True, tooltip="SDPO's margin mu: weakens the generated side's gradient so that the real side's error cannot rise. Below 0: off."),
            ],
            outputs=training_outputs(),
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, clip, vae, dataset, beta, sft_weight, margin_clamp, safeguard, **values) -> io.NodeOutput:
        options = PairOptions(margin_clamp or None, None if safeguard < 0 else safeguard, sft_weight)
        return run_training(cls, model, clip, vae, dataset, "spin", beta, options, **values)


class TrainBaseline(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SPINTrainBaseline",
            display_name="Train Baseline (SFT | DPO)",
            category="SPIN",
            description="What self-play is measured against, by the same loop: supervised fine-tuning on the real pictures, or Diffusion-DPO on preference pairs.",
            search_aliases=["sft", "dpo", "diffusion-dpo", "finetune"],
            inputs=[
                io.Combo.Input("method", options=["SFT", "DPO"], tooltip="SFT needs pictures with captions; DPO needs pairs (Pick-a-Pic)."),
                *training_inputs(),
                io.String.Input("beta", default="5000", tooltip="DPO only: how strongly the model is held to its start."),
            ],
            outputs=training_outputs(),
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, method, model, clip, vae, dataset, beta, **values) -> io.NodeOutput:
        return run_training(cls, model, clip, vae, dataset, method.lower(), beta, PairOptions(), **values)


class SaveSPIN(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SPINSave",
            display_name="Save SPIN",
            category="SPIN",
            description="Writes what was learnt into output/spin, where Load SPIN Checkpoint finds it. Nothing is overwritten.",
            inputs=[
                io.String.Input("filename_prefix", default="spin", tooltip="Name in output/spin; a number is added."),
                io.Combo.Input("format", options=FORMATS, tooltip="ComfyUI LoRA: small, for Load LoRA too. native U-Net: all weights, for Load Diffusion Model. diffusers folder: for diffusers and the hub."),
                io.Model.Input("model", optional=True, tooltip="The trained model, for the two U-Net formats."),
                LoraSocket.Input("lora", optional=True, tooltip="The trained LoRA, for the LoRA format."),
                io.String.Input("metrics", optional=True, force_input=True, tooltip="From the trainer: written into the file (parent's hash, round, settings)."),
            ],
            outputs=[io.String.Output("path", display_name="path", tooltip="The file or folder that was written.")],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, filename_prefix, format, model=None, lora=None, metrics=None) -> io.NodeOutput:
        home = os.path.join(folder_paths.get_output_directory(), spin_files.FOLDER)
        os.makedirs(home, exist_ok=True)
        folder, name, counter, _, _ = folder_paths.get_save_image_path(filename_prefix, home)
        path = Path(folder) / f"{name}_{counter:05}_"
        metadata = {"format": "pt", **(file_metadata(json.loads(metrics)) if metrics else {})}
        if format == FORMATS[0]:
            path = path.with_name(path.name + ".safetensors")
            spin_files.save_lora(lora, path, metadata)
        elif model is None:
            raise ValueError(f"{format} is written from the model: connect it")
        elif format == FORMATS[1]:
            path = path.with_name(path.name + ".safetensors")
            spin_files.save_native(model, path, metadata)
        else:
            spin_files.save_diffusers(model, path, metadata)
        return io.NodeOutput(str(path))


class SPINCurves(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SPINCurves",
            display_name="SPIN Curves",
            category="SPIN",
            description="Is it learning? Loss, margin, implicit accuracy, the four errors, gradient weight and drift over all rounds, with a warning on collapse.",
            search_aliases=["loss graph", "metrics"],
            inputs=[io.String.Input("metrics", force_input=True, tooltip="From Train SPIN or Train Baseline.")],
            outputs=[
                io.Image.Output("curves", tooltip="The curves as one picture."),
                io.String.Output("verdict", display_name="verdict", tooltip="What they say, in a sentence or two."),
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, metrics) -> io.NodeOutput:
        found = json.loads(metrics)
        text, picture = verdict(found), as_image(draw_curves(found))
        say(cls, text)
        return io.NodeOutput(picture, text, ui=ui.PreviewImage(picture, cls=cls))


NODES = [SPINDataset, LoadSPINCheckpoint, TrainSPIN, TrainBaseline, SaveSPIN, SPINCurves]
