"""The Sprite World's model out of ComfyUI's own classes. The node and the training script both build it here."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import comfy.clip_model
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import torch

UNET_CONFIG = {
    "image_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1] * 9 + [0] * 3,
    "transformer_depth_middle": 1,
    "context_dim": 64,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "legacy": False,
    "dtype": torch.float32,
}
DIT_CONFIG = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 4,
    "dim": 128,
    "n_layers": 8,
    "n_refiner_layers": 1,
    "n_heads": 4,
    "multiple_of": 32,
    "ffn_dim_multiplier": 3.0,
    "qk_norm": True,
    "cap_feat_dim": 64,
    "axes_dims": [8, 12, 12],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
    "dtype": torch.float32,
}
TEXT_CONFIG = {
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
VOCABULARY = 49408


class SpriteLatents(comfy.latent_formats.SD15):
    """SD1.x's format and scale, with this autoencoder's colours for the previews."""

    def __init__(self):
        super().__init__()
        self.taesd_decoder_name = None


class SpriteWorldConfig(comfy.supported_models.SD15):
    """SD1.x's block layout (attention at the same places) at a tenth of its width."""

    unet_extra_config = {"num_heads": 2, "num_head_channels": -1}  # noqa: RUF012 (the host reads it off the class)
    latent_format = SpriteLatents


class SpriteDiTConfig(comfy.supported_models.ZImage):
    """Z-Image's blocks, padding and sampling at a thirtieth of its width; only its modulation is too wide for that."""

    latent_format = SpriteLatents


class SpriteUNet(comfy.model_base.UNetModel):
    """The host's U-Net with v inside and epsilon outside: eps = sqrt(abar) v + sqrt(1 - abar) x_t (Salimans & Ho 2022).

    To give epsilon at high noise a U-Net must copy its input to a percent, which takes training far longer than this
    world gets; the sum above copies exactly. For the host it is an ordinary epsilon model.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        sigmas = comfy.model_sampling.ModelSamplingDiscrete().sigmas
        self.register_buffer("signal", (sigmas.square() + 1).rsqrt(), persistent=False)

    @functools.wraps(comfy.model_base.UNetModel._forward)  # wrappers find the arguments by their names
    def _forward(self, x, timesteps=None, *args, **kwargs):
        v = super()._forward(x, timesteps, *args, **kwargs)
        signal = self.signal.to(x.device)[timesteps.round().long()].view(-1, 1, 1, 1)
        return (signal * v + (1 - signal.square()).sqrt() * x).to(x.dtype)


class SpriteTextModel(comfy.sd1_clip.SDClipModel):
    """CLIP's text transformer at width 64, behind the tokenizer of SD1.x."""

    def __init__(self, device="cpu", dtype=None, model_options={}):  # noqa: B006 (the host's signature)
        super().__init__(
            device=device,
            textmodel_json_config=TEXT_CONFIG,
            return_projected_pooled=False,
            dtype=dtype,
            model_options=model_options,
        )


class SpriteClipModel(comfy.sd1_clip.SD1ClipModel):
    def __init__(self, device="cpu", dtype=None, model_options={}):  # noqa: B006
        super().__init__(device=device, dtype=dtype, model_options=model_options, clip_model=SpriteTextModel)


@contextmanager
def without_alarm(words: str) -> Iterator[None]:
    """Keeps one warning of the host out of the log, where what it warns of is wanted."""
    root, quiet = logging.getLogger(), lambda record: words not in str(record.msg)
    root.addFilter(quiet)
    try:
        yield
    finally:
        root.removeFilter(quiet)


class SpriteVAE(comfy.sd.VAE):
    """The host's VAE (encode, decode, tiled, memory management) around an autoencoder that it cannot guess from keys."""

    def __init__(self, autoencoder: torch.nn.Module):
        with without_alarm("No VAE weights detected"):
            super().__init__(sd={})  # sets SD1.x's sizes and processing, finds no known weights and returns
        self.memory_used_encode = lambda shape, dtype: (
            64 * shape[2] * shape[3] * comfy.model_management.dtype_size(dtype)
        )
        self.memory_used_decode = lambda shape, dtype: (
            4096 * shape[2] * shape[3] * comfy.model_management.dtype_size(dtype)
        )
        self.device = comfy.model_management.vae_device()
        self.vae_dtype = torch.float32
        self.output_device = comfy.model_management.intermediate_device()
        self.first_stage_model = autoencoder.eval().requires_grad_(False)
        comfy.model_management.archive_model_dtypes(self.first_stage_model)
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.first_stage_model, load_device=self.device, offload_device=comfy.model_management.vae_offload_device()
        )
        self.model_size()


def build_unet() -> comfy.model_base.BaseModel:
    """The U-Net in its host class, weights not yet set."""
    config = SpriteWorldConfig(UNET_CONFIG)
    config.set_inference_dtype(torch.float32, None)
    return comfy.model_base.BaseModel(config, model_type=comfy.model_base.ModelType.EPS, unet_model=SpriteUNet)


def build_dit() -> comfy.model_base.Lumina2:
    """The DiT in its host class, weights not yet set."""
    config = SpriteDiTConfig(DIT_CONFIG)
    config.set_inference_dtype(torch.float32, None)
    return comfy.model_base.Lumina2(config)


def _part(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def _floats(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.float() for key, value in weights.items()}


NETWORKS = {"unet.": build_unet, "dit.": build_dit}  # what the weights' names begin with says which network they are


def load_model(path: str, disable_dynamic: bool = True) -> comfy.model_patcher.ModelPatcher:
    """The MODEL, U-Net or DiT. Also the host's recipe for a deep copy, which asks for a plain patcher as this one always is."""
    weights = comfy.utils.load_torch_file(path, safe_load=True)
    prefix = next(prefix for prefix in NETWORKS if any(key.startswith(prefix) for key in weights))
    model = NETWORKS[prefix]()
    model.diffusion_model.load_state_dict(_floats(_part(weights, prefix)))
    *factors, bias = weights["latent_rgb"].tolist()
    model.latent_format.latent_rgb_factors, model.latent_format.latent_rgb_factors_bias = factors, bias
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)
    patcher.cached_patcher_init = (load_model, (path,))
    return patcher


def _token_table(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """[49408, 64]: the row of each token that captions use; the row of unknown words (the first) for every other."""
    rows, token_ids = weights["token_rows"].float(), weights["token_ids"].long()
    table = rows[:1].repeat(VOCABULARY, 1)
    table[token_ids] = rows[1:]
    return table


def load_clip(path: str) -> comfy.sd.CLIP:
    """The CLIP: any word can be encoded, those that the world does not know all alike."""
    weights = comfy.utils.load_torch_file(path, safe_load=True)
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, SpriteClipModel)
    clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32}, disable_dynamic=True)
    state = _floats(_part(weights, "text."))
    state["text_model.embeddings.token_embedding.weight"] = _token_table(weights)
    state["text_projection.weight"] = torch.eye(TEXT_CONFIG["hidden_size"])
    clip.load_sd(state)
    return clip


def load_vae(path: str, autoencoder: torch.nn.Module) -> SpriteVAE:
    """The VAE: these weights in the world's autoencoder."""
    autoencoder.load_state_dict(_floats(_part(comfy.utils.load_torch_file(path, safe_load=True), "vae.")))
    return SpriteVAE(autoencoder)


def require_weights(path: Path) -> str:
    if not path.is_file():
        raise ValueError(
            "Reinstall the pack, or train the Sprite World.\n"
            f'Its weights "{path}" are missing (python -m vico_spin.scripts.train_sprite_world --help).'
        )
    return str(path)
