"""LoRA (Hu et al. 2021) on any module's Linear and Conv2d layers, attached by name, without touching the layer.

An adapter adds its output in a forward hook: the model's own weights are never written, several adapters stack on
one layer (earlier rounds stay applied and frozen), and the reference model is the newest adapter switched off.
"""

import math
import re
from contextlib import contextmanager
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .randomness import keyed_generator

LoraLayers = Literal["attention", "attention and feed-forward", "all"]  # what a person chooses
ATTENTION, FEED_FORWARD_TOO, ALL = get_args(LoraLayers)


def layer_pattern(layers: LoraLayers, attention: str, feed_forward: str) -> str:
    """What the names of the chosen layers are, from those of attention and of the feed-forward; of all: anything."""
    return {ATTENTION: attention, FEED_FORWARD_TOO: f"{attention}|{feed_forward}", ALL: ""}[layers]


def unet_layers(layers: LoraLayers) -> str:
    """Those of SD's U-Nets, which the host and diffusers name alike."""
    return layer_pattern(layers, r"\.attn[12]\.(to_q|to_k|to_v|to_out\.0)$", r"\.ff\.net\.(0\.proj|2)$")


def find_layers(model: nn.Module, pattern: str) -> list[str]:
    """Names of the Linear and Conv2d layers that the regular expression finds, in the model's order.

    Raises: ValueError where there is none, so that a run never trains nothing.
    """
    names = [
        n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and re.search(pattern, f".{n}")
    ]
    if not names:
        raise ValueError(
            f'Choose other layers.\nNo linear or convolution layer of this model is named like "{pattern}".'
        )
    return names


class LoRALayer(nn.Module):
    """delta(x) = (alpha/rank)·up(down(x)) beside one layer.

    Down starts random and up at zero, so that delta starts at zero.
    """

    def __init__(self, layer: nn.Module, rank: int, alpha: float, generator: torch.Generator, device=None):
        super().__init__()
        self.scale = alpha / rank
        convolves = isinstance(layer, nn.Conv2d)
        self.conv = dict(stride=layer.stride, padding=layer.padding, dilation=layer.dilation) if convolves else {}
        out, *into = layer.weight.shape if convolves else (layer.out_features, layer.in_features)
        bound = 1 / math.sqrt(math.prod(into))  # the layer's own initialisation, Kaiming uniform with a = sqrt(5)
        down = torch.empty(rank, *into).uniform_(-bound, bound, generator=generator)
        device = layer.weight.device if device is None else device
        self.down = nn.Parameter(down.to(device))
        self.up = nn.Parameter(torch.zeros(out, rank, *(1,) * (len(into) - 1)).to(device))

    def forward(self, x: Tensor) -> Tensor:
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)  # float32 masters, cast to what the layer reads
        if self.down.ndim == 2:
            return F.linear(F.linear(x, down), up) * self.scale
        return F.conv2d(F.conv2d(x, down, **self.conv), up) * self.scale


class LoRA(nn.Module):
    """One adapter on the named layers of a model. `enabled` switches all of it; the hooks live inside `attached()`.

    device: where the adapter lies and computes; the layers' own by default, which may be offloaded.
    """

    def __init__(
        self, model: nn.Module, names: list[str], rank: int, alpha: float | None = None, seed: int = 0, device=None
    ):
        super().__init__()
        self.model_layers = {
            name: model.get_submodule(name) for name in names
        }  # a plain dict: they are not this module's own
        self.enabled = True
        for name, layer in self.model_layers.items():
            generator = keyed_generator(seed, "lora", name)
            made = LoRALayer(layer, rank, rank if alpha is None else alpha, generator, device)
            self.add_module(name.replace(".", "/"), made)

    def layers(self) -> dict[str, LoRALayer]:
        """The adapter's layers by the name of the model's layer."""
        return {name: getattr(self, name.replace(".", "/")) for name in self.model_layers}

    @contextmanager
    def attached(self):
        """Inside, the model's forward has the adapter in it."""
        hooks = [
            self.model_layers[name].register_forward_hook(self._hook(layer)) for name, layer in self.layers().items()
        ]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, layer: LoRALayer):
        return lambda module, args, output: output + layer(args[0]).to(output.dtype) if self.enabled else output

    @contextmanager
    def off(self):
        """Inside, the model is as it was without this adapter: the reference of the round."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def lora_state_dict(self, prefix: str = "diffusion_model.") -> dict[str, Tensor]:
        """Weights as ComfyUI's LoRA loader names them: <prefix><layer>.lora_up.weight, .lora_down.weight, .alpha."""
        state = {}
        for name, layer in self.layers().items():
            state[f"{prefix}{name}.lora_up.weight"] = layer.up.detach().clone()
            state[f"{prefix}{name}.lora_down.weight"] = layer.down.detach().clone()
            state[f"{prefix}{name}.alpha"] = torch.tensor(layer.scale * layer.down.shape[0])
        return state

    @torch.no_grad()
    def load_lora_state_dict(self, state: dict[str, Tensor], prefix: str = "diffusion_model.") -> None:
        """Takes weights of lora_state_dict's form, of this adapter's rank and layers.

        Raises: ValueError where they are others'.
        """
        wanted = self.lora_state_dict(prefix)
        wrong = [
            n for n in {**wanted, **state} if n not in wanted or n not in state or wanted[n].shape != state[n].shape
        ]
        if wrong:
            raise ValueError(
                "Take the model and the rank that the LoRA was trained with.\n"
                f'"{wrong[0]}" does not fit ({len(wrong)} tensors in all).'
            )
        for name, layer in self.layers().items():
            layer.up.copy_(state[f"{prefix}{name}.lora_up.weight"])
            layer.down.copy_(state[f"{prefix}{name}.lora_down.weight"])
            layer.scale = float(state[f"{prefix}{name}.alpha"]) / layer.down.shape[0]

    @torch.no_grad()
    def merge_into_weights(self) -> None:
        """Adds the adapter to the layers' weights for good: W <- W + scale·up·down."""
        for name, layer in self.layers().items():
            weight = self.model_layers[name].weight
            weight += lora_delta(layer.up, layer.down, layer.scale).to(weight)


def lora_of_parameters(parameters: dict[str, Tensor], prefix: str = "diffusion_model.") -> dict[str, Tensor]:
    """An adapter's parameters, as a checkpoint has them, in lora_state_dict's form. Assumes alpha = rank."""
    state = {}
    for name, tensor in parameters.items():
        layer, _, side = name.rpartition(".")
        stem = prefix + layer.replace("/", ".")
        state[f"{stem}.lora_{side}.weight"] = tensor
        if side == "down":
            state[f"{stem}.alpha"] = torch.tensor(float(len(tensor)))
    return state


def lora_delta(up: Tensor, down: Tensor, scale: float) -> Tensor:
    """scale·up·down in the layer's own shape. up: [out, r, …1]; down: [r, in, …kernel]. Returns [out, in, …kernel]."""
    return scale * (up.flatten(1) @ down.flatten(1)).view(up.shape[0], *down.shape[1:])


def stack_lora(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One adapter equal to the sum of several: ranks side by side, exact where a sum of products would need SVD."""
    stacked = {}
    for stem in dict.fromkeys(
        key.removesuffix(".alpha") for state in states for key in state if key.endswith(".alpha")
    ):
        parts = [state for state in states if f"{stem}.alpha" in state]
        downs = [part[f"{stem}.lora_down.weight"] for part in parts]
        scales = [float(part[f"{stem}.alpha"]) / len(down) for part, down in zip(parts, downs, strict=True)]
        ups = [part[f"{stem}.lora_up.weight"] * scale for part, scale in zip(parts, scales, strict=True)]
        stacked[f"{stem}.lora_up.weight"] = torch.cat(ups, dim=1)
        stacked[f"{stem}.lora_down.weight"] = torch.cat(downs)
        stacked[f"{stem}.alpha"] = torch.tensor(float(sum(map(len, downs))))
    return stacked
