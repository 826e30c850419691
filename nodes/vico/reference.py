"""ViCo Reference."""

from comfy_api.latest import io

from ..host.sockets import ReferenceSocket
from .photos import Reference, check_reference, encode_photo, mask_of


class ViCoReference(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ViCoReference",
            display_name="ViCo Reference",
            category="ViCo",
            description="Encodes the photo of the object that image attention will look at. More photos: a batch, or "
            "chain two of these.",
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE of the model that will draw."),
                io.Image.Input("image",
                    tooltip="A photo of the object; any size and aspect. A batch gives several photos of the same "
                    "object."),
                io.Mask.Input("mask", optional=True,
                    tooltip="Where the object is (white). Used when Apply ViCo's mask is 'given'."),
                ReferenceSocket.Input("more", optional=True,
                    tooltip="Another ViCo Reference of the same object; their photos are looked at side by side."),
                io.Int.Input("size", default=512, min=64, max=2048, step=64,
                    tooltip="The photo is scaled, aspect kept, to about size × size pixels: the size that the model "
                    "was trained at. Larger sees more detail and costs more."),
            ],
            outputs=[
                ReferenceSocket.Output("reference",
                    tooltip="For Apply ViCo. It also keeps the reference's features, so that the next seed costs "
                    "less.")
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, vae, image, size, mask=None, more=None) -> io.NodeOutput:
        check_reference(image, mask)
        photos = [encode_photo(vae, picture[..., :3], mask_of(mask, i), size) for i, picture in enumerate(image)]
        return io.NodeOutput(Reference((more.photos if more else []) + photos))
