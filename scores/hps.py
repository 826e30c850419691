"""HPS v2 and v2.1 (arXiv 2306.09341): human preference on the same ViT-H/14, published with open_clip's keys."""

from pathlib import Path

from .clip import ClipTextScorer, from_open_clip, open_clip_config, tokenizer_for
from .pictures import LongestSide
from .weights import OPEN_CLIP, build, checkpoint_of, read_weights

VERSIONS = {"v2": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}


class HPS(ClipTextScorer):
    """Cosine of picture and prompt, usually printed ×100; the two versions' numbers do not compare."""

    formula = "cosine(picture, prompt)"

    def __init__(self, version: str, *arguments):
        super().__init__(*arguments)
        self.name = f"HPS {version}"


def load(path: Path, version: str, tokenizer: Path | None = None, antialias: bool = True) -> HPS:
    """path: the .pt file as published. The versions share every key and shape, so the file's name tells them apart."""
    from transformers import CLIPModel

    name = f"HPS {version}"
    other = "v2" if version == "v2.1" else "v2.1"
    if ("2.1" in path.name) != (version == "v2.1"):
        raise ValueError(f'Choose {VERSIONS[version]}.\n"{path.name}" is named as HPS {other}, and {name} is chosen.')
    state = read_weights(path, OPEN_CLIP, name)
    config = open_clip_config(state)
    model = build(CLIPModel, config, from_open_clip(state), f'{name}, "{path.name}"')
    preprocessing = LongestSide(size=config.vision_config.image_size, antialias=antialias)
    words = tokenizer_for(path.parent, tokenizer, name)
    return HPS(version, model, preprocessing, [checkpoint_of(path)], words)
