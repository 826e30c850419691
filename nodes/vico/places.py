"""Where image attention goes in a ComfyUI model, and the modules that run there."""

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.utils import get_attr

from ...vico_core import (
    ImageAttention,
    Place,
    ViCoConcept,
    decoder_places,
    paper_places,
    place_count,
    place_parameters,
    spread_places,
)
from ...vico_core.places import UNET
from ...vico_core.training import PlaceShape
from ..host.families import transformer_family
from ..host.families.image_tokens import LAYOUTS, ImageTokens, Layout

FORWARDS = ("_forward", "forward_orig", "forward_core_with_concat")  # what a variant of a family does in its own way


def family_name(network: torch.nn.Module) -> str | None:
    """The family that image attention knows this network by; None where it knows none."""
    if isinstance(network, UNetModel):
        return UNET if paper_places(unet_places(network)) else None
    family = transformer_family(network)
    if family is None or family.name not in LAYOUTS or not runs_as(network, family.kind):
        return None
    return family.name


def runs_as(network: torch.nn.Module, kind: type) -> bool:
    return all(getattr(type(network), name, None) is getattr(kind, name, None) for name in FORWARDS)


def unet_places(network: torch.nn.Module) -> list[Place]:
    return decoder_places(name for name, _ in network.named_parameters())


def layout_of(network: torch.nn.Module) -> Layout | None:
    """Of a diffusion transformer; None for a U-Net."""
    return LAYOUTS.get(family_name(network))


def tokens_of(network: torch.nn.Module, place: Place) -> ImageTokens:
    """Where the picture's tokens are at this place."""
    layout = layout_of(network)
    if layout is not None:
        return layout.tokens(network, place.block)
    block = get_attr(network, place.block)
    return ImageTokens(block.n_heads * block.d_head, block.n_heads, joint=False)


def known_family(model) -> str:
    """The family of the host's BaseModel. ValueError where image attention has no place in it."""
    name = family_name(model.diffusion_model)
    if name is None:
        raise ValueError(
            "Load a model of a family that ViCo knows.\n"
            f"This model ({type(model.model_config).__name__}) has no place for ViCo, which needs a U-Net of the Stable Diffusion "
            f"family (SD1.x, SD2.x, SDXL) or one of these transformers: {', '.join(LAYOUTS)}."
        )
    return name


def possible_places(network: torch.nn.Module) -> list[Place]:
    """After any decoder block with attention of a U-Net; after any block of a diffusion transformer."""
    family = transformer_family(network)
    if family is None:
        return unet_places(network)
    return [Place(path, path) for path in family.block_paths(network)]


def default_places(network: torch.nn.Module, dense: bool = False) -> list[Place]:
    """The paper's of a U-Net; in a transformer as many, up to four, as come closest to the paper's share of the parameters.

    dense: all of a U-Net's, twice as many of a transformer's.
    """
    possible = possible_places(network)
    if layout_of(network) is None:
        return possible if dense else paper_places(possible)
    count = place_count(tokens_of(network, possible[0]).dim, parameters_of(network))
    return spread_places([place.block for place in possible], 2 * count if dense else count)


def parameters_of(network: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def places_of(model, dense: bool = False) -> tuple[list[Place], list[PlaceShape]]:
    """Where image attention is trained in this model (the host's BaseModel), and its shape. ValueError where it has no place."""
    known_family(model)
    places = default_places(model.diffusion_model, dense)
    return places, [shape_at(model.diffusion_model, place) for place in places]


def shape_at(network: torch.nn.Module, place: Place) -> PlaceShape:
    tokens = tokens_of(network, place)
    return PlaceShape(place.name, tokens.dim, tokens.heads, tokens.dim // tokens.heads)


def share(shapes: list[PlaceShape], network: torch.nn.Module) -> float:
    """Parameters of image attention against the model's."""
    return sum(place_parameters(shape.dim) for shape in shapes) / parameters_of(network)


def places_of_concept(concept: ViCoConcept, model) -> list[Place]:
    """The concept's places in this model (the host's BaseModel). ValueError where it has not all of them, as wide."""
    family, network = known_family(model), model.diffusion_model
    possible = {place.name: place for place in possible_places(network)}
    places = [place for name, place in possible.items() if name in concept.widths]
    widths = {place.name: tokens_of(network, place).dim for place in places}
    if widths != concept.widths or concept.family not in ("", family):
        own = {place.name: tokens_of(network, place).dim for place in default_places(network)}
        raise ValueError(
            "Use a concept trained on this model, or load its own model.\n"
            f"This model ({type(model.model_config).__name__}) has no place for this ViCo concept: it sits at "
            f"{describe(concept.widths)} of {concept.family or 'another model'}; the model's places are {describe(own)} of {family}."
        )
    return places


def describe(widths: dict[str, int]) -> str:
    return ", ".join(f"{place} (width {width})" for place, width in widths.items())


def load_modules(concept: ViCoConcept, model) -> tuple[list[Place], comfy.model_patcher.CoreModelPatcher]:
    """The concept's places in this MODEL and its modules under the host's memory management. ValueError if they do not fit."""
    places = places_of_concept(concept, model.model)
    modules, dtype = torch.nn.ModuleDict(), storage_dtype(model)
    for place in places:
        shape = shape_at(model.model.diffusion_model, place)
        module = ImageAttention(shape.dim, shape.heads, shape.dim_head, operations=comfy.ops.manual_cast, device="meta")
        module.load_state_dict({k: t.to(dtype) for k, t in concept.modules[place.name].items()}, assign=True)
        modules[module_name(place)] = module.requires_grad_(False).eval()
    devices = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    return places, comfy.model_patcher.CoreModelPatcher(modules, *devices)


def module_name(place: Place) -> str:
    return place.name.replace(".", "_")


def storage_dtype(model) -> torch.dtype:
    """The model's own, where that is a plain float; half precision beside quantised weights."""
    dtype = model.model_dtype()
    return dtype if dtype in (torch.float32, torch.float16, torch.bfloat16) else torch.float16
