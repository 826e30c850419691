"""Weight files as their authors publish them: read without running them, told apart by their keys."""

import hashlib
import pickle
from pathlib import Path
from typing import NamedTuple

from ..intake import LIMITS, check_file, check_pickle, read_json


class Checkpoint(NamedTuple):
    """A file that numbers came from: its name and the sha256 of its bytes."""

    file: str
    sha256: str


def checkpoint_of(path: Path) -> Checkpoint:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return Checkpoint(path.name, digest.hexdigest())


KINDS = {  # what a file is: keys that only it has
    "a CLIP model with open_clip's keys": ("visual.conv1.weight", "transformer.resblocks.0.attn.in_proj_weight"),
    "a CLIP model with transformers' keys": (
        "vision_model.embeddings.patch_embedding.weight",
        "text_model.embeddings.token_embedding.weight",
    ),
    "an ImageReward model": ("blip.visual_encoder.patch_embed.proj.weight", "mlp.layers.0.weight"),
    "an aesthetic predictor's head": ("layers.0.weight", "layers.7.weight"),
    "a ViT with transformers' keys": ("embeddings.cls_token", "embeddings.patch_embeddings.projection.weight"),
    "a Stable Diffusion checkpoint": ("model.diffusion_model.time_embed.0.weight",),
    "a diffusion U-Net": ("time_embedding.linear_1.weight",),
    "a VAE": ("decoder.conv_in.weight", "encoder.conv_in.weight"),
    "a CLIP vision tower alone": ("vision_model.embeddings.patch_embedding.weight",),
    "a CLIP text encoder alone": ("text_model.embeddings.token_embedding.weight",),
}
OPEN_CLIP, HF_CLIP, IMAGE_REWARD, AESTHETIC_HEAD, HF_VIT = list(KINDS)[:5]


def recognise(keys) -> str:
    """What a state dict is, in words, by its keys."""
    for kind, needed in KINDS.items():
        if all(key in keys for key in needed):
            return kind
    return "an unknown set of weights" if keys else "no weights at all"


def read_weights(path: Path, kind: str, scorer: str) -> dict:
    """The tensors of a .safetensors, .pt, .pth or .bin file, where they are of the kind that the scorer needs.

    Pickles are read by torch's weights_only loader, which runs nothing. Raises a ValueError that says what the file is.
    """
    state = read_safetensors(path) if path.suffix.lower() == ".safetensors" else read_pickle(path)
    found = recognise(state)
    if found != kind:
        raise ValueError(
            f'Choose the file that the scorer\'s authors publish.\n"{path.name}" is {found}; {scorer} needs {kind}.'
        )
    return state


def read_safetensors(path: Path) -> dict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_file(path, LIMITS.weights_bytes)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f'Download the file again.\n"{path.name}" is not a whole safetensors file ({error}).'
        ) from error


def read_pickle(path: Path) -> dict:
    """The tensors of a torch file, out of its "state_dict" where it has one."""
    import torch

    check_pickle(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else "it ends too early"
        raise ValueError(
            f'Download the file again.\n"{path.name}" could not be read as weights ({reason}). Nothing in it was run.'
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}


def weights_in(folder: Path, scorer: str) -> Path:
    """The weight file of a model folder as downloaded from the hub."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise ValueError(
        "Take the whole folder as it is on the hub.\n"
        f'{scorer}: "{folder.name}" has neither model.safetensors nor pytorch_model.bin.'
    )


ROOM = 2**24  # weights that may be made beside twice as many as the file has
SIZES = (  # what a config.json may say: an architecture's numbers, and nothing that loads or runs anything
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "projection_dim",
    "vocab_size",
    "max_position_embeddings",
)
OTHERS = ("hidden_act", "layer_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id", "qkv_bias")
PARTS = ("text_config", "vision_config", "text_config_dict", "vision_config_dict")


def read_config(config_class, folder: Path, scorer: str, **numbers):
    """The configuration in a model folder's config.json: its numbers; kernels, code and quantisation that it names are left out.

    numbers: what counts whatever the file says. Raises: ValueError where it is none.
    """
    from huggingface_hub import errors

    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f'Take the whole folder as it is on the hub.\n{scorer}: "{folder}" has no config.json.')
    described = architecture(read_json(path), path) | numbers
    try:
        return config_class(**described)
    except (TypeError, ValueError, getattr(errors, "StrictDataclassError", ValueError)) as error:
        raise ValueError(f'Download the folder again.\n"{path}" describes no model ({error}).') from error


def architecture(found, path: Path) -> dict:
    if not isinstance(found, dict):
        raise ValueError(f'Download the folder again.\n"{path}" describes no model.')
    sizes = {name: found[name] for name in SIZES if name in found}
    wrong = [name for name, size in sizes.items() if type(size) is not int or not 0 < size < 2**24]
    others = {name: found[name] for name in OTHERS if name in found}
    wrong += [name for name, value in others.items() if not isinstance(value, str | int | float | None)]
    if wrong:
        raise ValueError(
            f'Download the folder again.\n"{path}" describes no model: its {wrong[0]} is {found[wrong[0]]!r}.'
        )
    parts = {name: architecture(found[name], path) for name in PARTS if found.get(name) is not None}
    return sizes | others | parts


def build(model_class, config, state: dict, scorer: str, **arguments):
    """A transformers model of these weights in float32, on transformers 4.50 to 5.x; every weight must be there.

    from_pretrained(None, …) renames the keys as each version of transformers wants them; load_state_dict would not.
    """
    check_size(model_class, config, state, scorer, **arguments)
    named = {"config": config, "state_dict": state, "output_loading_info": True, "local_files_only": True}
    try:
        model, info = model_class.from_pretrained(None, **named, **arguments)
    except RuntimeError as error:
        raise ValueError(
            f"Download the folder again.\n{scorer}: the weights do not fit its configuration ({error})."
        ) from error
    missing = sorted(info["missing_keys"])
    if missing or info["mismatched_keys"]:
        first = (missing or [key for key, *_ in info["mismatched_keys"]])[0]
        raise ValueError(
            "Download the folder again.\n"
            f"{scorer}: the weights do not fill the model ({first} is missing or of another shape)."
        )
    return model.float()


def check_size(model_class, config, state: dict, scorer: str, **arguments) -> None:
    """Raises: ValueError where the configuration describes more than the weights hold, before any of it is made."""
    import torch

    layers = max(getattr(part, "num_hidden_layers", 1) for part in parts_of(config))
    if layers > len(state):
        raise ValueError(
            "Download the folder again.\n"
            f"{scorer}: its configuration has {layers:,} layers, and its weights are {len(state):,} tensors."
        )
    try:
        with torch.device("meta"):
            wanted = sum(weight.numel() for weight in model_class(config, **arguments).parameters())
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"Download the folder again.\n{scorer}: its configuration describes no model ({error})."
        ) from error
    held = sum(tensor.numel() for tensor in state.values())
    if wanted > 2 * held + ROOM:  # what is a little short is told by name, below
        raise ValueError(
            "Download the folder again.\n"
            f"{scorer}: its configuration describes {wanted:,} weights, and the file holds {held:,}."
        )


def parts_of(config) -> list:
    """A configuration and those of its towers."""
    return [config, *(getattr(config, name) for name in PARTS[:2] if hasattr(config, name))]


def layers_in(state: dict, prefix: str) -> int:
    """How many numbered layers the state dict has behind the prefix."""
    return 1 + max(int(key.removeprefix(prefix).split(".")[0]) for key in state if key.startswith(prefix))
