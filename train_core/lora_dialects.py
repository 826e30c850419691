"""LoRAs as diffusers, peft, kohya and LyCORIS write them, under the names that a model's layers have."""

import re
from collections.abc import Iterable

import torch
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
PLAIN_PARTS = {
    part: ours
    for ours, parts in {
        "lora_up.weight": (
            ".lora_up.weight",
            ".lora.up.weight",
            ".lora_linear_layer.up.weight",
            ".lora_B.weight",
            "_lora.up.weight",
        ),
        "lora_down.weight": (
            ".lora_down.weight",
            ".lora.down.weight",
            ".lora_linear_layer.down.weight",
            ".lora_A.weight",
            "_lora.down.weight",
        ),
    }.items()
    for part in parts
}
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


def read_dialect(state: dict[str, Tensor], names: Iterable[str]) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """(the tensors under the model's names, the layers among them, the layers that the model has not).

    names: of the model's layers. Layers of text encoders are left out: self-play changes none.
    """
    known = {canonical(name): name for name in names}
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


def plain_lora(state: dict[str, Tensor], names: Iterable[str], name: str) -> dict[str, Tensor]:
    """A plain LoRA of any dialect as LoRA.lora_state_dict has it. name: of the file, for errors.

    Raises: ValueError where it is none, is not whole, or belongs to another model.
    """
    renamed, layers, strange = read_dialect(state, names)
    if strange or not layers:
        what = f"{len(strange)} of its {len(strange) + len(layers)} layers are not in this model" if strange else ""
        raise ValueError(
            f'Take the model that the LoRA was trained on.\n"{name}" is of another: {what or "it has none of this one"}.'
        )
    if halves := without_partner(renamed):
        raise ValueError(f'Save or download the LoRA again.\n"{name}" is not whole: {halves[0]} has no partner.')
    found = {}
    for key, tensor in renamed.items():
        match = LAYER_PART.match(key) or SIDE_PART.match(key)
        ours = "alpha" if match["part"] == ".alpha" else PLAIN_PARTS.get(re.sub(r"\.default", "", match["part"]))
        if ours is None:
            raise ValueError(
                f'Load it in ComfyUI, or take a plain LoRA.\n"{name}" has parts of another kind ({match["part"][1:]}).'
            )
        found.setdefault(match["layer"], {})[ours] = tensor.float()
    taken = {}
    for layer, parts in found.items():
        parts.setdefault("alpha", torch.tensor(float(len(parts["lora_down.weight"]))))
        taken |= {f"diffusion_model.{layer}.{part}": tensor for part, tensor in parts.items()}
    return taken
