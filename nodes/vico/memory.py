"""What a training step will need, before the first one: measured on two small steps, since what is kept grows with the area."""

from dataclasses import dataclass

import comfy.model_management
import torch

from ...vico_core.training import Batch, TrainedConcept
from .streams import HostStreams, checkpointed

PROBES = (
    16,
    32,
)  # sides of the latents that are tried: 128 and 256 pixels; Z-Image fills up the tokens of smaller ones
OPTIMIZER_COPIES = 3  # beside each trained weight: its gradient and AdamW's two means
SIZE_STEP = 64


@dataclass(frozen=True)
class Need:
    """Bytes that a step adds to the loaded model: a part a sample, a part a sample and latent pixel, and the optimiser's."""

    sample: float
    pixel: float
    optimizer: int

    def bytes(self, side: int, batch_size: int) -> int:
        return round(batch_size * (self.sample + self.pixel * side**2) + self.optimizer)


def measure(streams: HostStreams, trained: TrainedConcept, caption: str) -> Need:
    small, large = (kept_bytes(streams, side, caption) for side in PROBES)
    pixel = (large - small) / (PROBES[1] ** 2 - PROBES[0] ** 2)
    optimizer = OPTIMIZER_COPIES * sum(p.nbytes for p in trained.parameters())
    return Need(small - pixel * PROBES[0] ** 2, pixel, optimizer)


def kept_bytes(streams: HostStreams, side: int, caption: str) -> int:
    """Bytes that one forward of both streams keeps for its gradient, at latents of side × side; weights do not count."""
    weights = {
        p.untyped_storage().data_ptr() for module in (streams.unet, streams.modules) for p in module.parameters()
    }
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # kept whole, an operation's own output would hold the graph that holds it, for ever

    frames = (1,) if streams.model.latent_format.latent_dimensions == 3 else ()
    shape = (1, streams.model.latent_format.latent_channels, *frames, side, side)
    latent = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(streams.engine.device)
    t = torch.zeros(1, dtype=torch.long, device=streams.engine.device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        predicted = streams.predict(latent, Batch(latent, latent, latent, t, [caption]))
    held = sum(kept.values())
    del predicted  # only now: had the graph gone before the count, one address could have stood for two tensors
    return held


def estimate(streams: HostStreams, trained, caption: str, size: int, batch_size: int, spared: bool) -> str:
    """What a step needs and what is free; where it does not fit, the setting that would. spared: checkpointing is on."""
    free = comfy.model_management.get_free_memory(streams.engine.device)
    scale = streams.model.latent_format.spacial_downscale_ratio
    need = measure(streams, trained, caption)
    wanted = need.bytes(size // scale, batch_size)
    told = f"A step needs about {gigabytes(wanted)} beside the model; {gigabytes(free)} are free."
    if wanted <= free:
        return told
    if not spared:
        with checkpointed(streams.unet):
            less = measure(streams, trained, caption).bytes(size // scale, batch_size)
        if less <= free:
            return f"{told} That may not fit: switch gradient_checkpointing on ({gigabytes(less)})."
    if batch_size > 1 and need.bytes(size // scale, 1) <= free:
        return f"{told} That may not fit: take batch_size 1 and accumulation {batch_size}."
    sizes = range(size - SIZE_STEP, 0, -SIZE_STEP)
    smaller = next((s for s in sizes if need.bytes(s // scale, 1) <= free), None)
    return f"{told} That may not fit: " + (f"size {smaller} would." if smaller else "close other programs first.")


def gigabytes(count: int) -> str:
    return f"{count / 2**30:.2f} GB"
