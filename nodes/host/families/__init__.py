"""What this pack knows of each family of diffusion models inside the host: one row or one small file a family.

Both methods ask here: ViCo for the places of image attention, self-play and ViCo's training for what can be trained.
"""

import re
from dataclasses import dataclass

import comfy.ldm.anima.model
import comfy.ldm.chroma.model
import comfy.ldm.cosmos.predict2
import comfy.ldm.flux.model
import comfy.ldm.hunyuan_video.model
import comfy.ldm.krea2.model
import comfy.ldm.lumina.model
import comfy.ldm.modules.attention
import comfy.ldm.modules.diffusionmodules.mmdit
import comfy.ldm.modules.diffusionmodules.openaimodel
import comfy.ldm.qwen_image.model
import comfy.ldm.wan.model
import torch

from ....train_core import ALL, LoraLayers, find_layers, layer_pattern, unet_layers

FLUX_ATTENTION = r"(img_attn|txt_attn)\.(qkv|proj)|linear1|linear2"
FLUX_FEED_FORWARD = r"(img_mlp|txt_mlp)\.(0|2)"
COSMOS_ATTENTION = r"(self_attn|cross_attn)\.(q_proj|k_proj|v_proj|output_proj)"


@dataclass(frozen=True)
class Family:
    """One family, told by the host's class of its network.

    blocks: the lists of its blocks, in the order they run. attention, feed_forward: names of Linears inside a block, as regular
    expressions (a single-stream Flux block has both in one: linear1, linear2). unread: of those, what of the last block nothing
    reads any more (its text goes nowhere), so that no gradient comes there.
    """

    name: str
    kind: type
    blocks: tuple[str, ...]
    attention: str
    feed_forward: str
    unread: str = "(?!)"

    def block_paths(self, network: torch.nn.Module) -> list[str]:
        """Paths of the network's blocks, in the order they run."""
        return [f"{path}.{i}" for path in self.blocks for i in range(len(network.get_submodule(path)))]

    def linears(self, network: torch.nn.Module, pattern: str) -> list[str]:
        """Paths of the Linears inside its blocks whose names below the block are the pattern's."""
        wanted = re.compile(rf"({'|'.join(self.blocks)})\.\d+\.({pattern})")
        named = network.named_modules()
        return [name for name, module in named if is_linear(module) and wanted.fullmatch(name)]

    def dead_ends(self, network: torch.nn.Module) -> set[str]:
        """Paths of the Linears whose output nothing reads."""
        last = f"{self.blocks[-1]}.{len(network.get_submodule(self.blocks[-1])) - 1}."
        named = self.linears(network, f"{self.attention}|{self.feed_forward}")
        return {name for name in named if name.startswith(last) and re.fullmatch(self.unread, name.removeprefix(last))}


def is_linear(module: torch.nn.Module) -> bool:
    """The host's Linear, its quantised one included, which is no torch.nn.Linear."""
    return hasattr(module, "in_features") and hasattr(module, "weight")


ldm = comfy.ldm
TRANSFORMERS = (  # the first that fits: Anima's class is a subclass of Cosmos-Predict2's
    Family("Flux", ldm.flux.model.Flux, ("double_blocks", "single_blocks"), FLUX_ATTENTION, FLUX_FEED_FORWARD),
    Family("Chroma", ldm.chroma.model.Chroma, ("double_blocks", "single_blocks"), FLUX_ATTENTION, FLUX_FEED_FORWARD),
    Family(
        "HunyuanImage",
        ldm.hunyuan_video.model.HunyuanVideo,
        ("double_blocks", "single_blocks"),
        FLUX_ATTENTION,
        FLUX_FEED_FORWARD,
    ),
    Family(
        "Qwen-Image",
        ldm.qwen_image.model.QwenImageTransformer2DModel,
        ("transformer_blocks",),
        r"attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)",
        r"(img_mlp|txt_mlp)\.net\.(0\.proj|2)",
        unread=r"attn\.(add_q_proj|to_add_out)|txt_mlp\..*",
    ),
    Family(
        "Z-Image, Lumina 2",
        ldm.lumina.model.NextDiT,
        ("layers",),
        r"attention\.(qkv|out)",
        r"feed_forward\.(w1|w2|w3)",
    ),
    Family(
        "SD3",
        ldm.modules.diffusionmodules.mmdit.MMDiT,
        ("joint_blocks",),
        r"(context_block|x_block)\.(attn|attn2)\.(qkv|proj)",
        r"(context_block|x_block)\.mlp\.(fc1|fc2)",
    ),
    Family(
        "Krea 2",
        ldm.krea2.model.SingleStreamDiT,
        ("blocks",),
        r"attn\.(wq|wk|wv|wo|gate)",
        r"mlp\.(gate|up|down)",
    ),
    Family("Anima", ldm.anima.model.Anima, ("blocks",), COSMOS_ATTENTION, r"mlp\.(layer1|layer2)"),
    Family("Cosmos-Predict2", ldm.cosmos.predict2.MiniTrainDIT, ("blocks",), COSMOS_ATTENTION, r"mlp\.(layer1|layer2)"),
    Family("Wan", ldm.wan.model.WanModel, ("blocks",), r"(self_attn|cross_attn)\.(q|k|v|o)", r"ffn\.(0|2)"),
)


def transformer_family(network: torch.nn.Module) -> Family | None:
    """The row of this network (a MODEL's diffusion_model); None for what the table does not know, U-Nets included."""
    return next((family for family in TRANSFORMERS if isinstance(network, family.kind)), None)


def trained_layers(network: torch.nn.Module, layers: LoraLayers) -> list[str]:
    """Paths of the layers that a LoRA changes. all: every Linear (in U-Nets convolutions too) that the answer hangs on.

    Raises: ValueError where this pack does not know the network.
    """
    if isinstance(network, ldm.modules.diffusionmodules.openaimodel.UNetModel):
        return find_layers(network, unet_layers(layers))
    family = transformer_family(network)
    if family is None:
        known = ", ".join(family.name for family in TRANSFORMERS)
        raise ValueError(
            "Connect a model of another family.\n"
            f"Which layers of a {type(network).__name__} to train is not known; those of SD1.x, SD2.x, SDXL, {known} are."
        )
    found = (
        [name for name, module in network.named_modules() if is_linear(module)]
        if layers == ALL
        else family.linears(network, layer_pattern(layers, family.attention, family.feed_forward))
    )
    dead = family.dead_ends(network)
    return [name for name in found if name not in dead]


def transformer_blocks(network: torch.nn.Module) -> list[torch.nn.Module]:
    """The blocks that are worth computing twice where memory is short."""
    family = transformer_family(network)
    if family is not None:
        return [network.get_submodule(path) for path in family.block_paths(network)]
    return [module for module in network.modules() if isinstance(module, ldm.modules.attention.BasicTransformerBlock)]


def sharded_blocks(network: torch.nn.Module) -> list[torch.nn.Module]:
    """The blocks that hold most of the weights, one beside another: a forward needs one of them at a time."""
    convolutions = ldm.modules.diffusionmodules.openaimodel.ResBlock
    return [*transformer_blocks(network), *(m for m in network.modules() if isinstance(m, convolutions))]
