"""LAION's aesthetic predictor v2: how people rated a picture from 1 to 10, an affine map on CLIP ViT-L/14."""

from pathlib import Path

from .clip import clip_from_folder, picture_embeddings
from .pictures import ShortestSide
from .scorer import ModelScorer
from .weights import AESTHETIC_HEAD, checkpoint_of, read_weights

HEAD_LAYERS = (0, 2, 4, 6, 7)  # the numbers between are dropouts; there is no activation among them


def linear_head(state: dict, prefix: str = "layers."):
    """The five linear layers 768-1024-128-64-16-1 of the aesthetic and the ImageReward head."""
    import torch

    layers = []
    for number in HEAD_LAYERS:
        weight, bias = state[f"{prefix}{number}.weight"].float(), state[f"{prefix}{number}.bias"].float()
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer)
    return torch.nn.Sequential(*layers)


class Aesthetic(ModelScorer):
    """About 1 to 10, real pictures mostly 5 to 6. Looks at the picture alone."""

    name = "LAION Aesthetic v2"
    formula = "MLP(CLIP ViT-L/14 embedding, L2-normalised)"

    def score_pixels(self, pixels, context):
        clip, head = self.module["clip"], self.module["head"]
        return head(picture_embeddings(clip, pixels))[:, 0]


def load(path: Path, backbone: Path) -> Aesthetic:
    """path: sac+logos+ava1-l14-linearMSE.pth. backbone: the folder clip-vit-large-patch14 as it is on the hub."""
    import torch

    head = linear_head(read_weights(path, AESTHETIC_HEAD, Aesthetic.name))
    clip, weights = clip_from_folder(backbone, Aesthetic.name)
    if clip.config.projection_dim != head[0].in_features:
        raise ValueError(
            "Put OpenAI's clip-vit-large-patch14 beside the predictor.\n"
            f'"{path.name}" reads embeddings of {head[0].in_features} numbers; the CLIP in "{backbone.name}" gives '
            f"{clip.config.projection_dim}."
        )
    size = clip.config.vision_config.image_size
    module = torch.nn.ModuleDict({"clip": clip, "head": head})
    preprocessing = ShortestSide(resize=size, crop=size)
    return Aesthetic(module, preprocessing, [checkpoint_of(path), checkpoint_of(weights)])
