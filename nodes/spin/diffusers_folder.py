"""A U-Net as diffusers and the hub have it."""

import json
from pathlib import Path

import comfy.model_base
import comfy.utils

from ...intake import write_text
from ...train_core import save_tensors
from .checkpoints import patched_weights, v_marks


def save_diffusers(model, folder: Path, metadata: dict[str, str]) -> None:
    """unet/config.json and unet/diffusion_pytorch_model.safetensors, as diffusers and the hub have it."""
    config = diffusers_config(model.model)
    if isinstance(model.model, comfy.model_base.SDXL) and v_marks(model):
        raise ValueError(
            "Choose native U-Net.\nA diffusers folder of an SDXL that predicts v would load as one that predicts noise."
        )
    native = patched_weights(model)
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    # the host's table knows SDXL's second embedding by two names; a U-Net of the hub calls it add_embedding
    names = {theirs: ours for theirs, ours in names.items() if not theirs.startswith("class_embedding.")}
    state = {theirs: native[ours] for theirs, ours in names.items() if ours in native}
    unknown = native.keys() - set(names.values())
    if unknown:
        raise ValueError(
            f"Choose another format.\ndiffusers' U-Net has no weights such as {min(unknown)} of this model."
        )
    save_tensors(folder / "unet" / "diffusion_pytorch_model.safetensors", state, metadata)
    write_text(folder / "unet" / "config.json", json.dumps(config, indent=2))


def diffusers_config(model) -> dict:
    """UNet2DConditionModel's configuration for the host's U-Net. Raises: ValueError for networks that are none."""
    config = model.model_config.unet_config
    if "model_channels" not in config:
        raise ValueError(
            "Save a LoRA or a native file.\nOnly U-Nets (SD1.x, SD2.x, SDXL) are written as a diffusers folder here."
        )
    levels = len(config["channel_mult"])
    blocks = config["num_res_blocks"]
    if len(set(blocks)) != 1:
        raise ValueError(
            f"Choose another format.\ndiffusers' U-Net has one number of residual blocks for all levels; this has {blocks}."
        )
    firsts = [sum(blocks[:level]) for level in range(levels)]
    depths = [config["transformer_depth"][first] for first in firsts]
    channels = [config["model_channels"] * mult for mult in config["channel_mult"]]
    down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths]
    up = ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)]
    heads = config.get("num_heads", -1)
    head_width = config.get("num_head_channels", -1)
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        # diffusers means the number of heads by this name
        "attention_head_dim": heads if heads != -1 else [width // head_width for width in channels],
        "block_out_channels": channels,
        "center_input_sample": False,
        "cross_attention_dim": config["context_dim"],
        "down_block_types": down,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": config["in_channels"],
        "layers_per_block": blocks[0],
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": config["out_channels"],
        "sample_size": 64,
        "transformer_layers_per_block": [max(1, depth) for depth in depths],
        "up_block_types": up,
        "use_linear_projection": bool(config.get("use_linear_in_transformer")),
        **additional_config(config),
    }


def additional_config(config: dict) -> dict:
    """SDXL's second embedding: the pooled text and six sizes of 256."""
    if config.get("adm_in_channels") is None:
        return {}
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": config["adm_in_channels"],
    }
