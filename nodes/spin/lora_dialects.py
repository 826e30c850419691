"""LoRAs as diffusers, peft, kohya and LyCORIS write them, under the names that the host's loader knows."""

import re

import comfy.lora
from torch import Tensor

# What stands behind a layer's name in each dialect: plain LoRA, LoHa, LoKr, GLoRA, OFT, and whole differences.
PARTS = (
    r"lora_(?:up|down|mid|A|B)(?:\.default)?(?:\.weight)?|lora\.(?:up|down|mid)\.weight|lora_linear_layer\.(?:up|down)\.weight|"
    r"hada_\w+|lokr_\w+|[ab][12]\.weight|oft_(?:blocks|diag)|diff(?:_b)?|w_norm|b_norm"
)
LAYER_PART = re.compile(rf"(?P<layer>.+?)(?P<part>\.(?:{PARTS})|_lora\.(?:up|down)\.weight)$")
SIDE_PART = re.compile(r"(?P<layer>.+?)(?P<part>\.(?:alpha|dora_scale|rescale))$")
PARTNERS = [("lora_up", "lora_down"), ("lora.up", "lora.down"), ("layer.up", "layer.down"), ("lora_A", "lora_B")]
PARTNERS += [
    ("hada_w1_a", "hada_w1_b"),
    ("hada_w2_a", "hada_w2_b"),
    ("lokr_w1_a", "lokr_w1_b"),
    ("lokr_w2_a", "lokr_w2_b"),
]
PREFIXES = ("base_model_model_", "lora_unet_", "lycoris_", "diffusion_model_", "model_", "unet_", "transformer_")
TEXT_ENCODERS = ("lora_te", "text_encoder", "te_", "te1_", "te2_")


def is_lora(state: dict[str, Tensor]) -> bool:
    """Told by its keys: a full model has weights and biases alone."""
    return any(LAYER_PART.match(key) for key in state)


def canonical(layer: str) -> str:
    """A layer's name without what the dialects differ in: prefixes, points or underscores, diffusers' processors."""
    name = layer.replace(".", "_").replace("_processor", "")
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return re.sub(r"to_out_0$", "to_out", name).replace("_", "")


def read_dialect(state: dict[str, Tensor], model) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """(the tensors under the host's names, the model's layers among them, the layers that the model has not).

    Layers of text encoders are left out: self-play changes none.
    """
    known = {canonical(name): name for name in comfy.lora.model_lora_keys_unet(model.model, {})}
    renamed, found, strange = {}, {}, {}
    for key, tensor in state.items():
        match = LAYER_PART.match(key) or SIDE_PART.match(key)
        if match is None or key.startswith(TEXT_ENCODERS):
            continue
        layer = match["layer"]
        if (name := known.get(canonical(layer))) is None:
            strange[layer] = None
        else:
            found[name] = None
            renamed[name + match["part"]] = tensor
    return renamed, list(found), list(strange)


def without_partner(renamed: dict[str, Tensor]) -> list[str]:
    """Tensors whose other half is missing: an up without its down, an A without its B."""
    swaps = [*PARTNERS, *((second, first) for first, second in PARTNERS)]
    others = ((key, key.replace(one, other)) for key in renamed for one, other in swaps if one in key)
    return [key for key, other in others if other not in renamed]
