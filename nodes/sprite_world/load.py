"""Load Sprite World."""

from comfy_api.latest import io

from ...sprite_world import WEIGHTS


class SpriteWorldLoad(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SpriteWorldLoad",
            display_name="Load Sprite World",
            category="Sprite World",
            description="A tiny text-to-image model of SD1.x's layout that comes with this pack: pixel-art creatures "
            "in ten scenes, 128 x 128, a second or two a picture on a CPU. For trying things out, tests and teaching.",
            search_aliases=["tiny model", "toy model", "test checkpoint", "sprite"],
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="The U-Net: SD1.x's blocks at a tenth of the width."),
                io.Clip.Output(tooltip="Its text encoder, behind the tokenizer of SD1.x. Try: a red crab on sand"),
                io.Vae.Output(tooltip="Its autoencoder, factor 8. Use 128 x 128 pixels for an empty latent."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from ...sprite_world.autoencoder import SpriteAutoencoder
        from .model import load_clip, load_model, load_vae, require_weights

        path = require_weights(WEIGHTS / "base.safetensors")
        return io.NodeOutput(load_model(path), load_clip(path), load_vae(path, SpriteAutoencoder()))
