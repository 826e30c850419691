"""LoRAs as diffusers, peft, kohya and LyCORIS write them, under the names that a model's layers have."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..intake.tables import parse_json, read_json

# What stands behind a layer's name in each dialect: plain LoRA, LoHa, LoKr, GLoRA, OFT, and whole differences.
PARTS = (
    r"lora_(?:up|down|mid|A|B)(?:\.default)?(?:\.weight)?|lora\.(?:up|down|mid)\.weight|lora_linear_layer\.(?:up|down)\.weight|"
    r"hada_\w+|lokr_\w+|[ab][12]\.weight|oft_(?:blocks|diag)|diff(?:_b)?|set_weight|w_norm|b_norm"
)
LAYER_PART = re.compile(rf"(?P<layer>.+?)(?P<part>\.(?:{PARTS})|_lora\.(?:up|down)\.weight)$")
SIDE_PART = re.compile(r"(?P<layer>.+?)(?P<part>\.(?:alpha|dora_scale|rescale|reshape_weight))$")
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
# bundle_emb: words that were learnt beside a LoRA
TEXT_ENCODERS = ("lora_te", "text_encoder", "te_", "te1_", "te2_", "bundle_emb.")
# Names of layers, whole or from their end, with ".*" in them: a stranger's own expression could run for ever.
ALPHA_PATTERN = re.compile(r"\^?(?:[\w.-]|\\\.)*(?:\.\*(?:[\w.-]|\\\.)*){0,3}\$?")
PEFT_PREFIXES = re.compile(r"^(?:unet\.|transformer\.|base_model\.model\.)+")


def is_lora(state: dict[str, Tensor]) -> bool:
    """Told by its keys: a full model has weights and biases alone."""
    return any(LAYER_PART.match(key) for key in state)


def canonical(layer: str) -> str:
    """A layer's name without what the dialects differ in: prefixes, points or underscores, diffusers' processors."""
    name = layer.replace(".", "_").replace("_processor", "")
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return re.sub(r"to_out_0$", "to_out", name).replace("_", "")


class Dialect(NamedTuple):
    """A LoRA's tensors under the model's names, and what of the file is not among them."""

    tensors: dict[str, Tensor]
    layers: list[str]
    strange: list[str]  # layers that the model has not
    text: list[str]  # layers of text encoders: self-play changes none
    unknown: list[str]  # tensors that are no part of a LoRA that is read here


def read_dialect(state: dict[str, Tensor], names: Iterable[str]) -> Dialect:
    """The LoRA as the model with layers of these names has it."""
    known = {canonical(name): name for name in names}
    renamed, found, strange, text, unknown = {}, {}, {}, {}, []
    for key, tensor in state.items():
        match = LAYER_PART.match(key) or SIDE_PART.match(key)
        if key.startswith(TEXT_ENCODERS):
            text[match["layer"] if match else key] = None
        elif match is None:
            unknown.append(key)
        elif (name := known.get(canonical(match["layer"]))) is None:
            strange[match["layer"]] = None
        else:
            found[name] = None
            renamed[name + match["part"]] = tensor
    return Dialect(renamed, list(found), list(strange), list(text), unknown)


def peft_settings(path: Path, metadata: dict[str, str]) -> dict:
    """What peft has noted of the LoRA: in the file's metadata, as diffusers does, or in adapter_config.json beside peft's own file.

    Raises: ValueError where that is no JSON object.
    """
    beside, found = path.with_name("adapter_config.json"), {}
    if "lora_adapter_metadata" in metadata:
        found = parse_json(metadata["lora_adapter_metadata"], path.name)
    elif path.stem == "adapter_model" and beside.is_file():
        found = read_json(beside)
    if not isinstance(found, dict):
        raise ValueError(
            f'Save or download the LoRA again.\nThe settings that come with "{path.name}" are no JSON object.'
        )
    return found


def with_alphas(state: dict[str, Tensor], settings: dict, name: str) -> dict[str, Tensor]:
    """The LoRA with peft's alphas as tensors: in a file without any a layer's rank is its alpha. name: of the file, for errors.

    settings: peft's own, or diffusers', whose names begin with the network's (unet.lora_alpha).
    Raises: ValueError where they are not those of a plain LoRA.
    """
    alphas = {}
    for key, tensor in state.items():
        match = LAYER_PART.match(key)
        if match is None or key.startswith(TEXT_ENCODERS):
            continue
        layer = match["layer"]
        own = {setting.removeprefix(f"{layer.partition('.')[0]}."): value for setting, value in settings.items()}
        if own.get("use_dora") or own.get("peft_type", "LORA") != "LORA":
            raise ValueError(f'Take a plain LoRA.\n"{name}" is of another kind, by the settings that come with it.')
        alpha = alpha_of(PEFT_PREFIXES.sub("", layer), own, name)
        if alpha is None or not match["part"].startswith(".lora_A") or f"{layer}.alpha" in state:
            continue
        if not isinstance(alpha, int | float):
            raise ValueError(f'Save or download the LoRA again.\nThe alpha that comes with "{name}" is no number.')
        root = len(tensor) ** 0.5 if own.get("use_rslora") else 1  # alpha / sqrt(rank) instead of alpha / rank
        alphas[f"{layer}.alpha"] = torch.tensor(float(alpha * root))
    return state | alphas


def alpha_of(layer: str, settings: dict, name: str) -> float | None:
    """The layer's own alpha, or that of all, as peft looks it up; None where none is noted. name: of the file, for errors.

    Raises: ValueError for a pattern that is not as peft's are.
    """
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(map(ALPHA_PATTERN.fullmatch, patterns)):
        raise ValueError(f'Save or download the LoRA again.\nThe alphas that come with "{name}" name no layers.')
    for pattern, alpha in patterns.items():
        if re.match(rf"(?:.*\.)?(?:{pattern})$", layer):
            return alpha
    return settings.get("lora_alpha")


def without_partner(renamed: dict[str, Tensor]) -> list[str]:
    """Tensors whose other half is missing: an up without its down, an A without its B."""
    swaps = [*PARTNERS, *((second, first) for first, second in PARTNERS)]
    others = ((key, key.replace(one, other)) for key in renamed for one, other in swaps if one in key)
    return [key for key, other in others if other not in renamed]


def plain_lora(state: dict[str, Tensor], names: Iterable[str], name: str) -> dict[str, Tensor]:
    """A plain LoRA of any dialect as LoRA.lora_state_dict has it. name: of the file, for errors.

    Raises: ValueError where it is none, is not whole, or belongs to another model.
    """
    read = read_dialect(state, names)
    renamed, layers, strange = read.tensors, read.layers, read.strange
    if strange or not layers:
        what = f"{len(strange)} of its {len(strange) + len(layers)} layers are not in this model" if strange else ""
        raise ValueError(
            f'Take the model that the LoRA was trained on.\n"{name}" is of another: {what or "it has none of this one"}.'
        )
    if read.unknown:
        raise ValueError(f'Take a plain LoRA.\n"{name}" has parts of another kind (for instance {read.unknown[0]}).')
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
