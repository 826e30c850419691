"""Where image attention goes in a ComfyUI model, and the modules that run there."""

from dataclasses import astuple

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch

from ...vico_core import ImageAttention, Place, ViCoConcept, find_places
from ...vico_core.training import PlaceShape


def places_of(model) -> tuple[list[Place], list[PlaceShape]]:
    """Where image attention goes in this model (the host's BaseModel), and its shape there. ValueError where it has no place."""
    unet, family = model.diffusion_model, type(model.model_config).__name__
    places = find_places(name for name, _ in unet.named_parameters())
    if not places:
        raise ValueError(
            f"This model ({family}) has no place for ViCo, which needs a U-Net of the Stable Diffusion family (SD1.x, SD2.x, SDXL)."
        )
    blocks = [comfy.utils.get_attr(unet, place.block) for place in places]
    shapes = [
        PlaceShape(place.name, block.n_heads * block.d_head, block.n_heads, block.d_head)
        for place, block in zip(places, blocks, strict=True)
    ]
    return places, shapes


def check_fits(concept: ViCoConcept, model, shapes: list[PlaceShape]) -> None:
    """ValueError where the concept's modules belong to another kind of model."""
    widths = {shape.name: shape.dim for shape in shapes}
    if widths != concept.widths:
        raise ValueError(
            f"This model ({type(model.model_config).__name__}) has no place for this ViCo concept: it sits at "
            f"{describe(concept.widths)}; the model's places are {describe(widths)}. Use a concept trained on this model, or "
            "load the checkpoint that it was trained on."
        )


def describe(widths: dict[str, int]) -> str:
    return ", ".join(f"{place} (width {width})" for place, width in widths.items())


def load_modules(concept: ViCoConcept, model) -> tuple[list[Place], comfy.model_patcher.CoreModelPatcher]:
    """The concept's places in this MODEL and its modules under the host's memory management. ValueError if they do not fit."""
    places, shapes = places_of(model.model)
    check_fits(concept, model.model, shapes)
    modules, dtype = torch.nn.ModuleDict(), storage_dtype(model)
    for place, (name, *shape) in zip(places, map(astuple, shapes), strict=True):
        module = ImageAttention(*shape, operations=comfy.ops.manual_cast, device="meta")
        module.load_state_dict({k: t.to(dtype) for k, t in concept.modules[name].items()}, assign=True)
        modules[module_name(place)] = module.requires_grad_(False).eval()
    devices = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    return places, comfy.model_patcher.CoreModelPatcher(modules, *devices)


def module_name(place: Place) -> str:
    return place.name.replace(".", "_")


def storage_dtype(model) -> torch.dtype:
    """The model's own, where that is a plain float; half precision beside quantised weights."""
    dtype = model.model_dtype()
    return dtype if dtype in (torch.float32, torch.float16, torch.bfloat16) else torch.float16
