"""Load SPIN Checkpoint, Save SPIN."""

import json
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..host.errors import NOT_CONNECTED, check_choice
from ..host.folders import free_path, marks
from ..host.progress import say
from ..host.sockets import LoraSocket
from ..host.written import written
from .checkpoints import (
    FOLDER,
    checkpoint_names,
    file_metadata,
    files_of,
    load_onto,
    path_of,
    save_lora,
    save_native,
)
from .diffusers_folder import save_diffusers

FORMATS = ["ComfyUI LoRA", "native U-Net", "diffusers folder"]


class LoadSPINCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SPINLoadCheckpoint",
            display_name="Load SPIN Checkpoint",
            category="ViCo + SPIN/SPIN",
            description="Loads what self-play has learnt: a U-Net (diffusers or native, a folder as downloaded from "
            "the hub) or a LoRA.",
            search_aliases=["SPIN-Diffusion", "diffusers unet", "UCLA-AGI", "dpo"],
            inputs=[
                io.Combo.Input("checkpoint", options=checkpoint_names(),
                    tooltip="A file of models/spin, output/spin, models/diffusion_models or models/loras. "
                    "SPIN-Diffusion-iter1 and its like go into models/spin as they are."),
                io.Float.Input("strength", default=1.0, min=0.0, max=2.0, step=0.05,
                    tooltip="With a base model: how far to go from it (0) to the checkpoint (1). A U-Net without a "
                    "base is loaded as it is."),
                io.Model.Input("model", optional=True,
                    tooltip="The base: needed for a LoRA; for a U-Net only where it should be mixed with its base."),
            ],
            outputs=[
                io.Model.Output("model",
                    tooltip="Use it with the base's own CLIP and VAE: self-play changes the U-Net alone.")
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, checkpoint, strength, model=None):
        return marks(*files_of(Path(path_of(checkpoint))))

    @classmethod
    def execute(cls, checkpoint, strength, model=None) -> io.NodeOutput:
        if strength == 0 and model is not None:
            return io.NodeOutput(model)
        return io.NodeOutput(load_onto(path_of(checkpoint), model, strength, say))


class SaveSPIN(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SPINSave",
            display_name="Save SPIN",
            category="ViCo + SPIN/SPIN",
            description="Writes what was learnt into output/spin, where Load SPIN Checkpoint finds it. Nothing is "
            "overwritten.",
            inputs=[
                io.String.Input("filename_prefix", default="spin", tooltip="Name in output/spin; a number is added."),
                io.Combo.Input("format", options=FORMATS,
                    tooltip="ComfyUI LoRA: small, for Load LoRA too. native U-Net: all weights, for Load Diffusion "
                    "Model. diffusers folder: for diffusers and the hub."),
                io.Model.Input("model", optional=True, tooltip="The trained model, for the two U-Net formats."),
                LoraSocket.Input("lora", optional=True, tooltip="The trained LoRA, for the LoRA format."),
                io.String.Input("metrics", optional=True, force_input=True,
                    tooltip="From the trainer: written into the file (parent's hash, round, settings)."),
            ],
            outputs=[io.String.Output("path", display_name="path", tooltip="The file or folder that was written.")],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, format, model=NOT_CONNECTED, lora=NOT_CONNECTED):
        check_choice("format", format, FORMATS)
        if lora is NOT_CONNECTED and format == FORMATS[0]:
            save_lora(None, Path(), {})
        if model is NOT_CONNECTED and format != FORMATS[0]:
            check_model(None, format)
        return True

    @classmethod
    def execute(cls, filename_prefix, format, model=None, lora=None, metrics=None) -> io.NodeOutput:
        path = free_path(Path(folder_paths.get_output_directory()) / FOLDER, filename_prefix, "spin")
        metadata = {"format": "pt", **(file_metadata(json.loads(metrics)) if metrics else {})}
        if format == FORMATS[0]:
            path = path.with_name(path.name + ".safetensors")
            save_lora(lora, path, metadata)
            return io.NodeOutput(str(path), ui=written(path))
        check_model(model, format)
        if format == FORMATS[1]:
            path = path.with_name(path.name + ".safetensors")
            save_native(model, path, metadata)
        else:
            save_diffusers(model, path, metadata)
        return io.NodeOutput(str(path), ui=written(path))


def check_model(model, format: str) -> None:
    """Raises: ValueError where a format of the whole model has none."""
    if model is None:
        raise ValueError(f"Connect the trained model.\n{format} is written from it.")
