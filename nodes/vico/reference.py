"""ViCo Reference."""

from comfy_api.latest import io

from ..host.sockets import ReferenceSocket
from .masks import as_images
from .photos import Reference, check_reference, encode_photo, mask_of, reference_masks


class ViCoReference(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ViCoReference",
            display_name="ViCo Reference",
            category="ViCo + SPIN/ViCo",
            description="Encodes the photo of the object that image attention will look at. More photos: a batch, or "
            "chain two of these.",
            search_aliases=["one photo", "subject reference", "ip-adapter", "vico"],
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE of the model that will draw."),
                io.Image.Input("image",
                    tooltip="A photo of the object; any size and aspect. A batch gives several photos of the same "
                    "object."),
                io.Mask.Input("mask", optional=True,
                    tooltip="Where the object is (white). Used when Apply ViCo's mask is 'given'. Load Image's mask is "
                    "white where a PNG is transparent: switch invert_mask on for a cut-out object."),
                ReferenceSocket.Input("more", optional=True,
                    tooltip="Another ViCo Reference of the same object; their photos are looked at side by side."),
                io.Int.Input("size", default=512, min=64, max=2048, step=64,
                    tooltip="The photo is scaled, aspect kept, to about size × size pixels: the size that the model "
                    "was trained at. Larger sees more detail and costs more."),
                io.Boolean.Input("invert_mask", default=False, optional=True,
                    tooltip="The mask is white where the object is not, as Load Image gives it for a PNG whose "
                    "background is transparent."),
            ],
            outputs=[
                ReferenceSocket.Output("reference",
                    tooltip="For Apply ViCo. It also keeps the reference's features, so that the next seed costs "
                    "less.")
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, vae, image, size, mask=None, more=None, invert_mask=False) -> io.NodeOutput:
        images, masks = as_images(image, "reference picture"), reference_masks(mask, invert_mask)
        check_reference(images, masks)
        photos = [encode_photo(vae, picture, mask_of(masks, i), size) for i, picture in enumerate(images)]
        return io.NodeOutput(Reference((more.photos if more else []) + photos))
