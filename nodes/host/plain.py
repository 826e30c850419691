"""What a node before a trainer may have done to a model that a training would not see, or could not go back through."""

from collections.abc import Iterator

import comfy.model_patcher


def check_plain(model: comfy.model_patcher.ModelPatcher) -> None:
    """ValueError that names the node whose change a training would miss. LoRAs as the host's patches are no such change."""
    change = next(changes(model), None)
    if change is not None:
        name, done = change
        raise ValueError(f"Connect the model from before {name}.\nAnother node has {done}, which training cannot see.")


def changes(model: comfy.model_patcher.ModelPatcher) -> Iterator[tuple[str, str]]:
    """(the node's name, as far as its functions tell it; what it has done)."""
    for name, patch in model.object_patches.items():
        if name.startswith("diffusion_model"):
            yield author(patch), f"patched layers of this model (for instance {name})"
    for name in [*model.injections, *model.weight_wrapper_patches]:
        yield f"the node of {name}", "put a LoRA into this model in bypass form"
    options = model.model_options.get("transformer_options", {})
    for patch in (patch for several in options.get("patches", {}).values() for patch in several):
        yield author(patch), "patched this model's blocks"
    for patch in (patch for several in options.get("patches_replace", {}).values() for patch in several.values()):
        yield author(patch), "replaced this model's attention"
    for key in (key for keyed in model.wrappers.values() for key, several in keyed.items() if several):
        yield f"the node of {key}", "wrapped this model"
    if "model_function_wrapper" in model.model_options:
        yield author(model.model_options["model_function_wrapper"]), "wrapped this model"


def author(function) -> str:
    """The node that a function was made in: `FreeU` of `FreeU.execute.<locals>.output_block_patch`, or what it says itself."""
    return getattr(function, "node", getattr(function, "__qualname__", type(function).__qualname__).split(".")[0])
