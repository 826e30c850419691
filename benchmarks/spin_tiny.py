"""Tiny models of every family that SPIN trains, of the host's own classes: for tests/graph and for benchmarks.

Call scripts.host.enter() before importing this.
"""

import comfy.model_base
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models as supported
import comfy.taesd.taesd
import torch

TEXT_WIDTH = 32
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1] * 4,
    "transformer_depth_middle": 1,
    "context_dim": TEXT_WIDTH,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "legacy": False,
    "dtype": torch.float32,
}
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


def config_of(family: str, changes: dict):
    """The host's configuration class of the family, at the tiny size."""
    if family == "flux":
        return supported.Flux({**FLUX, **changes})
    if family == "sd3":
        return supported.SD3({**MMDIT, **changes})
    base = {"sd1": supported.SD15, "sd2": supported.SD20, "sdxl": supported.SDXL}[family]
    heads = {"num_heads": 2, "num_head_channels": -1}
    shape = dict(UNET, use_linear_in_transformer=family != "sd1")
    if family == "sdxl":
        shape |= {"num_classes": "sequential", "adm_in_channels": TEXT_WIDTH + 6 * 256}
    return type("Tiny", (base,), {"unet_extra_config": heads})({**shape, **changes})


def tiny_model(family: str = "sd1", seed: int = 0, dtype=torch.float32, **changes) -> comfy.model_patcher.ModelPatcher:
    """A MODEL of the family: sd1, sd2 (v), sdxl, sd3 or flux. Weights are drawn from the seed."""
    config = config_of(family, {"dtype": dtype, **changes})
    config.set_inference_dtype(dtype, None)
    kind = comfy.model_base.ModelType
    built = {
        "sd1": lambda: comfy.model_base.BaseModel(config, kind.EPS),
        "sd2": lambda: comfy.model_base.BaseModel(config, kind.V_PREDICTION),
        "sdxl": lambda: comfy.model_base.SDXL(config, kind.EPS),
        "sd3": lambda: comfy.model_base.SD3(config),
        "flux": lambda: comfy.model_base.Flux(config),
    }[family]()
    initialise(built.diffusion_model, seed)
    return comfy.model_patcher.CoreModelPatcher(built, torch.device("cpu"), torch.device("cpu"))


@torch.no_grad()
def initialise(module: torch.nn.Module, seed: int) -> None:
    """Small random matrices, unit scales, zero biases: the host leaves weights unset until a file is loaded."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in [*module.named_parameters(), *module.named_buffers()]:
        if parameter.ndim > 1 and parameter.is_floating_point():
            drawn = torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5
            parameter.copy_(drawn)
        elif parameter.is_floating_point():
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


class TinyText(comfy.sd1_clip.SDClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        config = {
            "num_hidden_layers": 1,
            "hidden_size": TEXT_WIDTH,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "hidden_act": "quick_gelu",
            "max_position_embeddings": 77,
            "eos_token_id": 49407,
        }
        super().__init__(device=device, textmodel_json_config=config, dtype=dtype, model_options=model_options or {})


class TinyClipModel(comfy.sd1_clip.SD1ClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device=device, dtype=dtype, model_options=model_options or {}, clip_model=TinyText)


class ClipTarget:
    clip = TinyClipModel
    tokenizer = comfy.sd1_clip.SD1Tokenizer

    def __init__(self):
        self.params = {}


def tiny_clip(seed: int = 0) -> comfy.sd.CLIP:
    """A CLIP of width 32 behind SD1.x's own tokenizer."""
    clip = comfy.sd.CLIP(ClipTarget(), model_options={"dtype": torch.float32})
    initialise(clip.cond_stage_model, seed)
    return clip


def tiny_vae(latent_channels: int = 4, seed: int = 0) -> comfy.sd.VAE:
    """A TAESD with random weights, which ComfyUI loads as a VAE."""
    torch.manual_seed(seed)
    module = comfy.taesd.taesd.TAESD(latent_channels=latent_channels)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            else:
                parameter.zero_()
    state = {name: tensor for name, tensor in module.state_dict().items() if name.startswith("taesd_")}
    return comfy.sd.VAE(sd=state)
