"""What of a model a reference's features hang on: everything that changes its weights or its bare forward."""

import itertools
import weakref
from collections.abc import Hashable

from .capture import DROPPED

NUMBERS = itertools.count()
NUMBERED: dict[int, tuple[weakref.ref, int]] = {}


def number_of(thing) -> int:
    """A number of its own for an object, never given twice (an id() is, once its object is gone)."""
    known = NUMBERED.get(id(thing))
    if known is None or known[0]() is not thing:
        key = id(thing)
        known = NUMBERED[key] = weakref.ref(thing, lambda _: NUMBERED.pop(key, None)), next(NUMBERS)
    return known[1]


def forward_key(patcher) -> Hashable | None:
    """Equal where two passes over one reference give the same features: patches, LoRAs in bypass form, layers of other nodes.

    None while hooks are on (a LoRA on a schedule), which change the weights from step to step.
    """
    if patcher.current_hooks is not None:
        return None
    injected = [number_of(injection) for several in patcher.injections.values() for injection in several]
    wrapped = [number_of(function) for several in patcher.weight_wrapper_patches.values() for function in several]
    layers = {key: foreign(patch) for key, patch in patcher.object_patches.items() if key.startswith("diffusion_model")}
    replaced = sorted((key, number_of(patch)) for key, patch in layers.items() if patch is not None)
    options = patcher.model_options.get("transformer_options", {})
    told = sorted((name, repr(value)) for name, value in options.items() if name not in DROPPED)
    models = (number_of(patcher.model), number_of(patcher.get_model_object("model_sampling")), patcher.patches_uuid)
    return (*models, *map(tuple, (injected, wrapped, replaced, told)))


def foreign(patch):
    """Another node's patch of a layer, where one lies below those of Apply ViCo, which leave a reference pass as it is; else None."""
    while hasattr(patch, "previous"):
        patch = patch.previous
    block = getattr(patch, "__self__", None)
    return None if block is not None and patch.__func__ is type(block).forward else patch
