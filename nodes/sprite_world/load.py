"""Load Sprite World."""

from comfy_api.latest import io

from ...sprite_world import ARCHITECTURES, CONTROLNET
from ..host.folders import register_folder

register_folder("controlnet", {".safetensors"}, str(CONTROLNET.parent.parent))  # for the host's Load ControlNet Model


class SpriteWorldLoad(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SpriteWorldLoad",
            display_name="Load Sprite World",
            category="ViCo + SPIN/Sprite World",
            description="A tiny text-to-image model that comes with this pack, of SD1.x's layout or of Z-Image's: pixel-art "
            "creatures in ten scenes, 128 x 128, a second or two a picture on a CPU. For trying things out, tests and "
            "teaching.",
            search_aliases=["tiny model", "toy model", "test checkpoint", "sprite"],
            inputs=[
                io.Combo.Input("architecture", options=list(ARCHITECTURES), default="U-Net", optional=True,
                    tooltip="U-Net: as SD1.x, epsilon prediction. DiT: as Z-Image, a diffusion transformer with text and "
                    "image in one attention, flow. Both have the same text encoder and VAE, so they read the same prompts."),
            ],
            outputs=[
                io.Model.Output(tooltip="The network: SD1.x's U-Net at a tenth of its width, or Z-Image's transformer at a "
                    "thirtieth."),
                io.Clip.Output(tooltip="Its text encoder, behind the tokenizer of SD1.x. Try: a red crab on sand"),
                io.Vae.Output(tooltip="Its autoencoder, factor 8. Use 128 x 128 pixels for an empty latent."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, architecture="U-Net") -> io.NodeOutput:
        from ...sprite_world.autoencoder import SpriteAutoencoder
        from .model import load_clip, load_model, load_vae, require_weights

        network, base = require_weights(ARCHITECTURES[architecture]), require_weights(ARCHITECTURES["U-Net"])
        return io.NodeOutput(load_model(network), load_clip(base), load_vae(base, SpriteAutoencoder()))
