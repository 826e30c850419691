"""SPIN checkpoints on disk: which kind a file is, loading it onto a model, saving."""

import ast
import json
import logging
import os
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import comfy.lora
import comfy.lora_convert
import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import comfy.sd
import comfy.utils
import folder_paths
import torch
from safetensors import SafetensorError
from torch import Tensor

from ...intake import LIMITS, check_file, check_pickle
from ...sprite_world import EXAMPLE, EXAMPLE_LORA
from ...train_core import save_tensors
from ...train_core.lora_dialects import is_lora, peft_settings, read_dialect, with_alphas, without_partner
from ..host.folders import register_folder
from .patch_sizes import fits

FOLDER = "spin"
SHARD = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})(?=\.\w+$)")
STOPPED = "stopped.safetensors"  # in a run's folder
LIGHTNING = (  # what checkpoints of old trainings hold beside their weights, and the host's loader takes
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "numpy.dtypes.Float64DType",
    "_codecs.encode",
)
ENDINGS = {".safetensors", ".sft", ".pt", ".bin", ".ckpt"}


def register_folders() -> None:
    """models/spin and output/spin."""
    register_folder(FOLDER, ENDINGS, folder_paths.models_dir, folder_paths.get_output_directory())


register_folders()


def checkpoint_names() -> list[str]:
    """What Load SPIN Checkpoint offers: "folder: file".

    Hub folders show as their U-Net's file; training's own files are left out, but what a stopped run has learnt.
    """
    register_folders()  # the output directory may be another one than when the pack was loaded
    names = []
    for kind in (FOLDER, "diffusion_models", "loras"):
        for name in folder_paths.get_filename_list(kind):
            parts = Path(name).parts
            if kind == FOLDER and parts[0] in ("cache", "pictures", "runs") and parts[-1] != STOPPED:
                continue
            if (shard := SHARD.search(name)) and int(shard["number"]) > 1:
                continue
            names.append(f"{kind}: {name}")
    return [*names, EXAMPLE]


def path_of(name: str) -> str:
    """The file behind a name of checkpoint_names. Raises: FileNotFoundError where it is gone."""
    kind, _, file = name.partition(": ")
    return str(EXAMPLE_LORA) if name == EXAMPLE else folder_paths.get_full_path_or_raise(kind, file)


def load_onto(path: str, model, strength: float, say: Callable[[str], None] = lambda text: None):
    """The checkpoint as a MODEL: a LoRA on `model`, or a U-Net (on its own, or mixed with `model` by strength).

    say: is told how many layers were taken. Raises: ValueError where the file does not belong to the model.
    """
    name = os.path.basename(path)
    state, metadata = load_state(Path(path))
    if is_lora(state):
        if model is None:
            raise ValueError(f'Connect the model that the LoRA was trained on.\n"{name}" is a LoRA.')
        return with_lora(model, with_alphas(state, peft_settings(Path(path), metadata), name), strength, name, say)
    network = network_of(state, metadata, name, say=say)
    network.cached_patcher_init = (load_network, (path,))
    return network if model is None else mixed(model, network, strength, name)


def network_of(
    state: dict[str, Tensor],
    metadata: dict[str, str],
    name: str,
    disable_dynamic: bool = False,
    say: Callable[[str], None] = lambda text: None,
):
    """The diffusion model of these weights. Raises: ValueError where they are none, or not all of one.

    metadata: of the file, where the host finds how weights are quantised and what their names do not tell of the model.
    """
    with what_is_missing() as missing:
        network = comfy.sd.load_diffusion_model_state_dict(state, metadata=metadata, disable_dynamic=disable_dynamic)
    if network is None:
        raise ValueError(f'Choose another checkpoint.\n"{name}" is neither a LoRA nor a model that ComfyUI knows.')
    weights = [key for key, _ in network.model.diffusion_model.named_parameters()]
    layers, lost = (dict.fromkeys(key.rpartition(".")[0] for key in keys) for keys in (weights, missing & {*weights}))
    if lost:
        raise ValueError(
            "Put its other parts beside it, or download it again.\n"
            f'"{name}" holds {len(layers) - len(lost)} of the {len(layers)} layers of its model ({next(iter(lost))} is missing).'
        )
    say(f"U-Net: {len(layers)} of {len(layers)} layers")
    return network


@contextmanager
def what_is_missing() -> Iterator[set[str]]:
    """Names of weights that the host's loader did not find: it says so in the log alone, and goes on with whatever the memory held."""
    names, word = set(), "unet missing: "

    def listen(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if text.startswith(word):
            names.update(ast.literal_eval(text.removeprefix(word)))
        return True

    logging.getLogger().addFilter(listen)
    try:
        yield names
    finally:
        logging.getLogger().removeFilter(listen)


def load_network(path: str, disable_dynamic: bool = False):
    """The host's recipe for a deep copy."""
    return network_of(*load_state(Path(path)), os.path.basename(path), disable_dynamic)


def files_of(path: Path) -> list[Path]:
    """The file, or all shards of the model that it is one of. Raises: ValueError where one is missing."""
    shard = SHARD.search(path.name)
    if shard is None:
        return [path]
    count = int(shard["count"])
    names = [f"{path.name[: shard.start()]}-{n:05}-of-{count:05}{path.suffix}" for n in range(1, count + 1)]
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise ValueError(
            "Put the model's other files beside it.\n"
            f'"{path.name}" is one of {count}; {", ".join(missing)} are missing.'
        )
    return [path.parent / name for name in names]


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of the checkpoint, its shards together. Raises: ValueError where weights are not finite."""
    state, metadata = {}, {}
    for file in files_of(path):
        tensors, header = tensors_of(file)
        state |= tensors
        metadata |= header
    broken = [key for key, t in state.items() if t.is_floating_point() and not is_finite(t)]
    if broken:
        raise ValueError(
            "Take an earlier checkpoint, or download this one again.\n"
            f'"{path.name}" has {len(broken)} weights that are NaN or infinite (for instance {broken[0]}).'
        )
    return state, metadata


def read_weights(file: Path) -> tuple[dict, dict | None]:
    """What a file of weights holds, and its metadata, by the host's loader. Raises: ValueError where it is not whole."""
    check_file(file, LIMITS.weights_bytes)
    if file.suffix.lower() not in (".safetensors", ".sft"):
        check_pickle(file, LIGHTNING)
    try:
        return comfy.utils.load_torch_file(str(file), safe_load=True, return_metadata=True)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
    ) as error:
        raise ValueError(
            f'Download the file again, or choose another.\n"{file.name}" is not a whole file of weights ({error}).'
        ) from error


def tensors_of(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file's tensors and metadata. Raises: ValueError where it has no tensors or is not whole."""
    found, metadata = read_weights(file)
    tensors = {k: v for k, v in found.items() if torch.is_tensor(v)} if isinstance(found, dict) else {}
    if not tensors:
        raise ValueError(f'Choose another checkpoint.\n"{file.name}" holds no weights.')
    return tensors, metadata or {}


def is_finite(tensor: Tensor) -> bool:
    wide = tensor.float() if tensor.element_size() == 1 else tensor  # float8 has no isfinite
    return bool(torch.isfinite(wide).all())


def with_lora(model, state: dict[str, Tensor], strength: float, name: str, say: Callable[[str], None]):
    """The LoRA on the model, by the host's own loader: all of its layers. Raises: ValueError with the reason otherwise."""
    places = comfy.lora.model_lora_keys_unet(model.model, {})
    read = read_dialect(comfy.lora_convert.convert_lora(state), places)
    renamed, layers, strange = read.tensors, read.layers, read.strange
    if strange:
        raise ValueError(
            "Connect the model that the LoRA was trained on.\n"
            f'{len(strange)} of {len(strange) + len(layers)} layers of "{name}" are not in this one (for instance {strange[0]}).'
        )
    if read.unknown:
        raise ValueError(
            "Choose another LoRA.\n"
            f'ComfyUI does not read {len(read.unknown)} tensors of "{name}" (for instance {read.unknown[0]}): without them it is not whole.'
        )
    if halves := without_partner(renamed):
        raise ValueError(f'Save or download the LoRA again.\n"{name}" is not whole: {halves[0]} has no partner.')
    patches = comfy.lora.load_lora(renamed, places, log_missing=False)
    weights = model.model.state_dict()
    wrong = [key for key, patch in patches.items() if not fits(patch, part_of(weights, key))]
    if wrong:
        where = wrong[0] if isinstance(wrong[0], str) else wrong[0][0]
        raise ValueError(
            f'Connect the model that the LoRA was trained on.\n{where} of "{name}" has another shape in this one.'
        )
    if lost := [layer for layer in layers if places[layer] not in patches]:
        raise ValueError(
            f'Choose another LoRA.\nComfyUI does not read the kind of {len(lost)} layers of "{name}" (for instance {lost[0]}).'
        )
    others = f"; {len(read.text)} of text encoders are left out" if read.text else ""
    say(f"LoRA: {len(patches)} of {len(layers)} layers{others}")
    patched = model.clone()
    patched.add_patches(patches, strength)
    return patched


def part_of(weights: dict[str, Tensor], key: str | tuple) -> Tensor | None:
    """What a patch of this key changes: a weight, or a part of it where the key is (name, (axis, start, length) or None, ...)."""
    name, place, *_ = (key, None) if isinstance(key, str) else key
    return weights.get(name) if place is None else weights[name].narrow(*place)


def mixed(model, network, strength: float, name: str):
    """(1 - strength)·model + strength·network, weight by weight, as the host merges models."""
    base, other = model.model.diffusion_model.state_dict(), network.model.diffusion_model.state_dict()
    strange = [k for k in {**base, **other} if k not in base or k not in other or base[k].shape != other[k].shape]
    if strange:
        raise ValueError(
            "Leave the model input open to load it alone.\n"
            f'"{name}" is of another architecture than the model: {len(strange)} weights differ (for instance {strange[0]}).'
        )
    patched = model.clone()
    for key, patch in network.get_key_patches("diffusion_model.").items():
        patched.add_patches({key: patch}, strength, 1 - strength)
    return patched


def save_lora(lora: dict[str, Tensor] | None, path: Path, metadata: dict[str, str]) -> None:
    """A LoRA as Load LoRA and Load SPIN Checkpoint read it."""
    if not lora:
        raise ValueError(
            "Connect the trainer's lora, or choose another format.\nThere is no LoRA to save: full training has none."
        )
    save_tensors(path, {name: tensor.detach().cpu().contiguous() for name, tensor in lora.items()}, metadata)


def patched_weights(model) -> dict[str, Tensor]:
    """The network's weights with all patches of the model in them, on the CPU."""
    model = model.clone(disable_dynamic=True)  # the host's dynamic loading never writes patches into weights
    comfy.model_management.load_models_gpu([model], force_patch_weights=True, force_full_load=True)
    state = model.model_state_dict_for_saving(model.model.diffusion_model, "diffusion_model.")
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def save_native(model, path: Path, metadata: dict[str, str]) -> None:
    """One safetensors file, as Load Diffusion Model reads it."""
    save_tensors(path, patched_weights(model) | v_marks(model), metadata)


def v_marks(model) -> dict[str, Tensor]:
    """The tensors by which the host's own files say that a model predicts v, and from which noise on."""
    sampling, marks = model.get_model_object("model_sampling"), {}
    if model.model.model_type == comfy.model_base.ModelType.V_PREDICTION:
        marks["v_pred"] = torch.tensor([])
        if getattr(sampling, "zsnr", False):
            marks["ztsnr"] = torch.tensor([])
    continuous, v = comfy.model_sampling.ModelSamplingContinuousEDM, comfy.model_sampling.V_PREDICTION
    if isinstance(sampling, continuous) and isinstance(sampling, v):
        marks["edm_vpred.sigma_max"] = sampling.sigma_max.detach().cpu().float().clone()
        marks["edm_vpred.sigma_min"] = sampling.sigma_min.detach().cpu().float().clone()
    return marks


def file_metadata(metrics: dict) -> dict[str, str]:
    """What a saved file says of its making: the parent's hash, the round, the settings."""
    return {
        "spin.method": metrics["method"],
        "spin.parent": metrics["parent"],
        "spin.round": str(len(metrics["rounds"])),
        "spin.settings": json.dumps(metrics["settings"]),
    }
