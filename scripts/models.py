"""Small models with weights by seed, of the host's own classes: for tests, benchmarks and the demo.

No weight here was ever trained: shapes, speed and exactness are true, pictures are noise. Call scripts.host.enter() first.
"""

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.taesd.taesd
import torch

TEXT_WIDTH = 40  # of the small CLIP, and of what the small models read


def seeded(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Fills the weights (the host leaves them uninitialised): fan-in scaled matrices, norms near 1, small biases."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in [*module.named_parameters(), *module.named_buffers()]:
            if not p.is_floating_point():
                continue
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim > 1:
                p.copy_(noise * (p[0].numel() ** -0.5))
            else:
                p.copy_(noise * 0.1 + (0.0 if name.endswith("bias") else 1.0))
    return module


def unet_config(width=32, channel_mult=(1, 2, 4, 4), num_res_blocks=2, attention=3, context_dim=TEXT_WIDTH) -> dict:
    """attention: how many levels, from the finest, have transformers. width 320 and context_dim 768 are SD1.x itself."""
    at = [int(level < attention) for level in range(len(channel_mult))]
    return {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": width,
        "channel_mult": list(channel_mult),
        "num_res_blocks": [num_res_blocks] * len(channel_mult),
        "transformer_depth": [depth for depth in at for _ in range(num_res_blocks)],
        "transformer_depth_output": [depth for depth in at for _ in range(num_res_blocks + 1)],
        "transformer_depth_middle": 1,
        "context_dim": context_dim,
        "use_spatial_transformer": True,
        "legacy": False,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
    }


def sd1(heads=8, seed=1, dtype=torch.float32, config=None, **layout) -> comfy.model_patcher.ModelPatcher:
    """A MODEL of SD1.x's kind; by default its own layout at 1/10 width. `config`: keys of the U-Net's config to override."""

    class Small(comfy.supported_models.SD15):
        unet_extra_config = {"num_heads": heads, "num_head_channels": -1}  # noqa: RUF012

    model_config = Small(unet_config(**layout) | (config or {}))
    model_config.set_inference_dtype(dtype, None)
    model = comfy.model_base.BaseModel(model_config, model_type=comfy.model_base.ModelType.EPS)
    seeded(model.diffusion_model, seed)
    devices = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    return comfy.model_patcher.CoreModelPatcher(model, load_device=devices[0], offload_device=devices[1])


FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "flux")
MMDIT = {
    "in_channels": 16,
    "patch_size": 2,
    "depth": 2,
    "input_size": None,
    "adm_in_channels": TEXT_WIDTH,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": TEXT_WIDTH, "out_features": 128},
    },
    "pos_embed_max_size": 16,
    "num_patches": 256,
    "pos_embed_scaling_factor": None,
    "dtype": torch.float32,
}
FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": TEXT_WIDTH,
    "context_in_dim": TEXT_WIDTH,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
    "dtype": torch.float32,
}


def family_config(family: str, changes: dict):
    """The host's configuration class of the family, at a tiny size."""
    supported = comfy.supported_models
    if family == "flux":
        return supported.Flux({**FLUX, **changes})
    if family == "sd3":
        return supported.SD3({**MMDIT, **changes})
    base = {"sd1": supported.SD15, "sd2": supported.SD20, "sdxl": supported.SDXL}[family]
    heads = {"num_heads": 2, "num_head_channels": -1}
    shape = unet_config(channel_mult=(1, 2), num_res_blocks=1, attention=2)
    shape["use_linear_in_transformer"] = family != "sd1"
    if family == "sdxl":
        shape |= {"num_classes": "sequential", "adm_in_channels": TEXT_WIDTH + 6 * 256}
    return type("Tiny", (base,), {"unet_extra_config": heads})({**shape, **changes})


def of_family(family: str = "sd1", seed: int = 0, dtype=torch.float32, **changes) -> comfy.model_patcher.ModelPatcher:
    """A tiny MODEL of one of the FAMILIES: sd1, sd2 (v), sdxl, sd3 or flux. changes: to its configuration."""
    config = family_config(family, {"dtype": dtype, **changes})
    config.set_inference_dtype(dtype, None)
    base, kind = comfy.model_base, comfy.model_base.ModelType
    built = {
        "sd1": lambda: base.BaseModel(config, kind.EPS),
        "sd2": lambda: base.BaseModel(config, kind.V_PREDICTION),
        "sdxl": lambda: base.SDXL(config, kind.EPS),
        "sd3": lambda: base.SD3(config),
        "flux": lambda: base.Flux(config),
    }[family]()
    seeded(built.diffusion_model, seed)
    devices = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    return comfy.model_patcher.CoreModelPatcher(built, *devices)


def clip(width=TEXT_WIDTH, intermediate=96, layers=1, heads=4, seed=2) -> comfy.sd.CLIP:
    """A CLIP behind SD1's own tokenizer, its text model small."""
    config = {
        "hidden_size": width,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": "quick_gelu",
        "max_position_embeddings": 77,
        "eos_token_id": 49407,
        "vocab_size": 49408,
    }

    class SmallTextModel(comfy.sd1_clip.SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options={}):  # noqa: B006 (the host's signature)
            options = {**model_options, "model_name": "small"}
            super().__init__(
                device, textmodel_json_config=config, dtype=dtype, return_projected_pooled=False, model_options=options
            )

    class SmallClip(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, device="cpu", dtype=None, model_options={}):  # noqa: B006
            super().__init__(device=device, dtype=dtype, model_options=model_options, clip_model=SmallTextModel)

    class Target:
        params = {}  # noqa: RUF012
        clip = SmallClip
        tokenizer = comfy.sd1_clip.SD1Tokenizer

    made = comfy.sd.CLIP(Target, model_options={"dtype": torch.float32})
    seeded(made.cond_stage_model, seed)
    return made


def vae(latent_channels=4, seed=3) -> comfy.sd.VAE:
    """A VAE of TAESD's architecture."""
    weights = seeded(comfy.taesd.taesd.TAESD(latent_channels=latent_channels), seed).state_dict()
    return comfy.sd.VAE(sd={k: v for k, v in weights.items() if k.startswith("taesd_")})
