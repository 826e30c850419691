"""The real host in this process, and small models of the true architecture in it.

`host.run(prompt)` runs an API-format prompt; `call("NodeId", **inputs)` runs one node as the executor does and returns its
results. `make_sd1(…)` builds a small SD1.x-shaped MODEL, `make_clip(…)` a small CLIP, `make_vae()` a small VAE, weights by seed.
"""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
from scripts.host import Host, enter  # noqa: E402

enter()

import torch  # noqa: E402


@pytest.fixture(scope="session")
def host():
    return Host()


@pytest.fixture(scope="session")
def call(host):
    """call("ViCoApply", model=…) → the node's results, under inference_mode as in the executor."""

    def run(node_id: str, **inputs):
        with torch.inference_mode():
            node = host.node_classes[node_id]
            if hasattr(node, "define_schema"):
                node = node.PREPARE_CLASS_CLONE({"hidden_inputs": {}})
                return node.execute(**inputs).result
            return getattr(node(), node.FUNCTION)(**inputs)

    return run


def seeded(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights by seed (the host leaves them uninitialised): fan-in scaled matrices, norms near 1, small biases."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim > 1:
                p.copy_(noise * (p[0].numel() ** -0.5))
            else:
                p.copy_(noise * 0.1 + (1.0 if name.endswith("weight") else 0.0))
    return module


@pytest.fixture(scope="session")
def make_sd1(host):
    """make_sd1(channel_mult, num_res_blocks, attention, heads, context_dim, seed): a MODEL of SD1.x's kind at width 32.

    attention: how many levels, from the finest, have transformers. Defaults: SD1.x's own layout at 1/10 width.
    """
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    def make(
        channel_mult=(1, 2, 4, 4),
        num_res_blocks=2,
        attention=3,
        heads=8,
        context_dim=40,
        seed=1,
        dtype=torch.float32,
        in_channels=4,
        family="SD15",
        **more,
    ):
        levels = len(channel_mult)
        at = [int(level < attention) for level in range(levels)]
        config = {
            "image_size": 32,
            "in_channels": in_channels,
            "out_channels": 4,
            "model_channels": 32,
            "channel_mult": list(channel_mult),
            "num_res_blocks": [num_res_blocks] * levels,
            "transformer_depth": [depth for depth in at for _ in range(num_res_blocks)],
            "transformer_depth_output": [depth for depth in at for _ in range(num_res_blocks + 1)],
            "transformer_depth_middle": 1,
            "context_dim": context_dim,
            "use_spatial_transformer": True,
            "legacy": False,
            "use_linear_in_transformer": False,
            "adm_in_channels": None,
            "use_temporal_attention": False,
            **more,
        }
        base = getattr(comfy.supported_models, family)
        small = type(family, (base,), {"unet_extra_config": {"num_heads": heads, "num_head_channels": -1}})
        model_config = small(config)
        model_config.set_inference_dtype(dtype, None)
        model = comfy.model_base.BaseModel(model_config, model_type=comfy.model_base.ModelType.EPS)
        seeded(model.diffusion_model, seed)
        cpu = torch.device("cpu")
        return comfy.model_patcher.CoreModelPatcher(model, load_device=cpu, offload_device=cpu)

    return make


@pytest.fixture(scope="session")
def make_clip(host):
    """make_clip(width, …): a CLIP behind SD1's own tokenizer, its text model small."""
    import comfy.sd
    import comfy.sd1_clip

    def make(width=40, intermediate=96, layers=1, heads=4, seed=2, embedding_directory=None):
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
            def __init__(self, device="cpu", dtype=None, model_options={}):  # noqa: B006
                super().__init__(
                    device=device,
                    dtype=dtype,
                    textmodel_json_config=config,
                    return_projected_pooled=False,
                    model_options={**model_options, "model_name": "small"},
                )

        class SmallClip(comfy.sd1_clip.SD1ClipModel):
            def __init__(self, device="cpu", dtype=None, model_options={}):  # noqa: B006
                super().__init__(device=device, dtype=dtype, model_options=model_options, clip_model=SmallTextModel)

        class Target:
            params = {}  # noqa: RUF012
            clip = SmallClip
            tokenizer = comfy.sd1_clip.SD1Tokenizer

        clip = comfy.sd.CLIP(Target, embedding_directory=embedding_directory)
        seeded(clip.cond_stage_model, seed)
        return clip

    return make


@pytest.fixture(scope="session")
def make_vae(host):
    """A VAE of TAESD's architecture with random weights: true shapes and scale, no picture in it."""
    import comfy.sd
    import comfy.taesd.taesd

    def make(seed=3):
        weights = seeded(comfy.taesd.taesd.TAESD(), seed).state_dict()
        return comfy.sd.VAE(sd={k: v for k, v in weights.items() if k.startswith("taesd_")})

    return make
