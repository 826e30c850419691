"""Tiny models of the host's own diffusion transformers, one a family, with weights by seed. Call scripts.host.enter() first.

Each is the class that the host builds for real files of the family, at a width of 64 and a handful of blocks.
"""

import types
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import comfy.ldm.anima.model
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch

from .models import FLUX, MMDIT, TEXT_WIDTH, seeded

LUMINA = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 64,
    "n_layers": 4,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "multiple_of": 32,
    "ffn_dim_multiplier": 2.0,
    "qk_norm": True,
    "cap_feat_dim": TEXT_WIDTH,
    "axes_dims": (8, 12, 12),
    "axes_lens": (64, 64, 64),
}
WIDE = {"dim": 256, "n_heads": 8}  # Z-Image's modulation takes 256 numbers, and no fewer
QWEN = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "num_layers": 4,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT_WIDTH,
    "axes_dims_rope": (8, 12, 12),
}
KREA = {
    "image_model": "krea2",
    "features": 64,
    "tdim": 32,
    "txtdim": TEXT_WIDTH,
    "heads": 2,
    "kvheads": 1,
    "multiplier": 2,
    "layers": 4,
    "txtlayers": 2,
    "txtheads": 2,
    "txtkvheads": 2,
}
COSMOS = {
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 64,
    "num_blocks": 4,
    "num_heads": 2,
    "crossattn_emb_channels": TEXT_WIDTH,
    "pos_emb_cls": "rope3d",
    "pos_emb_learnable": True,
    "use_adaln_lora": True,
    "adaln_lora_dim": 8,
    "rope_h_extrapolation_ratio": 4.0,
    "rope_w_extrapolation_ratio": 4.0,
}
WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 64,
    "ffn_dim": 128,
    "freq_dim": 32,
    "text_dim": TEXT_WIDTH,
    "num_heads": 2,
    "num_layers": 4,
}
CHROMA = {
    "image_model": "chroma",
    "in_channels": 64,
    "out_channels": 64,
    "context_in_dim": TEXT_WIDTH,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 4,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "in_dim": 64,
    "out_dim": 64,
    "hidden_dim": 64,
    "n_layers": 2,
    "txt_ids_dims": [],
    "vec_in_dim": None,
}
DEEPER = {"depth": 2, "depth_single_blocks": 4}
FLUX2 = {
    **FLUX,
    **DEEPER,
    "image_model": "flux2",
    "in_channels": 128,
    "out_channels": 128,
    "vec_in_dim": None,
    "patch_size": 1,
    "axes_dim": [8, 8, 8, 8],
    "theta": 2000,
    "qkv_bias": False,
    "ops_bias": False,
    "global_modulation": True,
    "mlp_silu_act": True,
    "txt_ids_dims": [3],
    "ref_index_scale": 10.0,
    "default_ref_method": "index",
}
HUNYUAN = {
    "image_model": "hunyuan_video",
    "in_channels": 64,
    "out_channels": 64,
    "vec_in_dim": None,
    "context_in_dim": TEXT_WIDTH,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 4,
    "axes_dim": [16, 16],
    "theta": 256,
    "patch_size": [1, 1],
    "qkv_bias": True,
    "guidance_embed": False,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}


MMDIT_X = {
    **MMDIT,
    "depth": 4,  # and width 64 a block
    "qk_norm": "rms",
    "x_block_self_attn_layers": [0, 1],
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": TEXT_WIDTH, "out_features": 256},
    },
}


class SmallAnima(comfy.ldm.anima.model.Anima):
    """Anima with an adapter of its class at the small width: the host's has none but its full size."""

    def __init__(self, *args, **kwargs):
        super(comfy.ldm.anima.model.Anima, self).__init__(*args, **kwargs)
        made = {name: kwargs.get(name) for name in ("device", "dtype", "operations")}
        self.llm_adapter = comfy.ldm.anima.model.LLMAdapter(
            TEXT_WIDTH, TEXT_WIDTH, TEXT_WIDTH, num_layers=1, num_heads=2, **made
        )


class SmallAnimaBase(comfy.model_base.Anima):
    def __init__(self, model_config, model_type=comfy.model_base.ModelType.FLOW, device=None):
        super(comfy.model_base.Anima, self).__init__(model_config, model_type, device=device, unet_model=SmallAnima)


@dataclass(frozen=True)
class Tiny:
    """One family: its configuration class in the host, a small configuration, the latent's channels and number of axes.

    text: width of an encoded prompt's rows; build: from the configuration to the host's BaseModel (None: the host's own way).
    """

    config: type
    unet: dict
    channels: int = 16
    frames: bool = False  # latents are [B, C, T, H, W]
    text: int = TEXT_WIDTH
    pooled: bool = False
    build: Callable | None = None


supported = comfy.supported_models
TRANSFORMERS: dict[str, Tiny] = {
    "Flux.1": Tiny(supported.Flux, {**FLUX, **DEEPER}, pooled=True),
    "Flux.1 Schnell": Tiny(supported.FluxSchnell, {**FLUX, **DEEPER, "guidance_embed": False}, pooled=True),
    "Flux.2": Tiny(supported.Flux2, FLUX2, channels=128),
    "Chroma": Tiny(supported.Chroma, CHROMA),
    "Qwen-Image": Tiny(supported.QwenImage, QWEN, frames=True),
    "Z-Image": Tiny(
        supported.ZImage,
        {**LUMINA, **WIDE, "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32},
    ),
    "Lumina 2": Tiny(supported.Lumina2, {**LUMINA, "n_kv_heads": 1}),
    "SD3.5": Tiny(supported.SD3, MMDIT_X, pooled=True),
    "Krea 2": Tiny(supported.Krea2, KREA, frames=True, text=2 * TEXT_WIDTH),
    "Anima": Tiny(supported.Anima, {**COSMOS, "image_model": "anima"}, frames=True, build=SmallAnimaBase),
    "Cosmos-Predict2": Tiny(supported.CosmosT2IPredict2, {**COSMOS, "image_model": "cosmos_predict2"}, frames=True),
    "HunyuanImage 2.1": Tiny(supported.HunyuanImage21, HUNYUAN, channels=64),
    "Wan": Tiny(supported.WAN21_T2V, WAN, frames=True),
}


def transformer(family: str, seed: int = 0, dtype=torch.float32, **changes) -> comfy.model_patcher.ModelPatcher:
    """A tiny MODEL of one of TRANSFORMERS. changes: to its configuration."""
    tiny = TRANSFORMERS[family]
    config = tiny.config({**tiny.unet, "dtype": dtype, **changes})
    config.set_inference_dtype(dtype, None)
    model = tiny.build(config) if tiny.build else config.get_model({}, device=None)
    seeded(model.diffusion_model, seed)
    devices = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    return comfy.model_patcher.CoreModelPatcher(model, *devices)


def latent(family: str, side: int = 8, batch: int = 1) -> torch.Tensor:
    """An empty latent of the family: [B, C, side, side], [B, C, 1, side, side] where it has frames."""
    tiny = TRANSFORMERS[family]
    return torch.zeros(batch, tiny.channels, *([1] if tiny.frames else []), side, side)


def prompt(family: str, tokens: int = 12, seed: int = 0) -> list:
    """A CONDITIONING of random rows as the family's text encoder would give."""
    tiny, generator = TRANSFORMERS[family], torch.Generator().manual_seed(seed)
    extra = {"pooled_output": torch.randn(1, TEXT_WIDTH, generator=generator)} if tiny.pooled else {}
    if family == "Anima":
        extra |= {"t5xxl_ids": torch.arange(1, tokens + 1), "t5xxl_weights": torch.ones(tokens)}
    return [[torch.randn(1, tokens, tiny.text, generator=generator), extra]]


class Texts:
    """Stands where a family's text encoder would: rows by seed, as many as its tokenizer might make of the prompt's words."""

    layer_idx = None
    tokenizer = None
    tokenizer_options = types.MappingProxyType({})

    def __init__(self, family: str):
        self.family = family
        self.cond_stage_model = torch.nn.Linear(1, 1)
        self.patcher = types.SimpleNamespace(model=self.cond_stage_model, patches={}, backup={})
        seeded(self.cond_stage_model, zlib.crc32(family.encode()))

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> list:
        return prompt(self.family, 11 + len(text.split()), seed=zlib.crc32(text.encode()))


class Pixels:
    """Stands where a family's VAE would: a latent is the picture's mean colours, in the family's shape."""

    def __init__(self, family: str, scale: int):
        self.family, self.scale = family, scale
        self.first_stage_model = seeded(torch.nn.Linear(1, 1), zlib.crc32(family.encode()))

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels: [B, H, W, 3] in 0..1."""
        tiny = TRANSFORMERS[self.family]
        means = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1) * 2 - 1, self.scale)
        latents = means.repeat(1, -(-tiny.channels // 3), 1, 1)[:, : tiny.channels]
        return latents.unsqueeze(2) if tiny.frames else latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        pixels = latents[:, :3].movedim(1, -1).repeat_interleave(self.scale, -2).repeat_interleave(self.scale, -3)
        return pixels.sigmoid()
