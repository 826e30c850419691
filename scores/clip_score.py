"""CLIP score (arXiv 2104.08718), CLIP-T and CLIP-I: plain cosines of a CLIP from the hub. Say which backbone."""

from pathlib import Path

from .clip import ClipTextScorer, ReferenceScorer, clip_from_folder, picture_embeddings, tokenizer_for
from .pictures import ShortestSide
from .weights import checkpoint_of


class ClipScore(ClipTextScorer):
    """Cosine of picture and prompt. CLIP-T is the same number for a prompt whose placeholder was taken out."""

    formula = "cosine(picture, prompt)"

    def __init__(self, backbone: str, *arguments):
        super().__init__(*arguments)
        self.name = f"CLIP score ({backbone})"


class ClipImage(ReferenceScorer):
    """CLIP-I: mean cosine of a picture's CLIP embedding with those of the real photos."""

    def __init__(self, backbone: str, *arguments):
        super().__init__(*arguments)
        self.name = f"CLIP-I ({backbone})"

    def embed(self, pixels):
        return picture_embeddings(self.module, pixels)


def backbone_of(model) -> str:
    """The vision tower's common name, such as ViT-B/32."""
    vision = model.config.vision_config
    size = {768: "B", 1024: "L", 1280: "H", 1664: "bigG"}.get(vision.hidden_size, str(vision.hidden_size))
    return f"ViT-{size}/{vision.patch_size}"


def clip_preprocessing(model) -> ShortestSide:
    size = model.config.vision_config.image_size
    return ShortestSide(resize=size, crop=size, odd="transformers")


def load_clip_score(path: Path, tokenizer: Path | None = None, preprocessing=None) -> ClipScore:
    """path: a CLIP folder from the hub. preprocessing: another than CLIP's own (DreamMatcher's protocol)."""
    model, weights = clip_from_folder(path, "CLIP score")
    words = tokenizer_for(path, tokenizer, "CLIP score")
    steps = preprocessing or clip_preprocessing(model)
    return ClipScore(backbone_of(model), model, steps, [checkpoint_of(weights)], words)


def load_clip_image(path: Path, preprocessing=None) -> ClipImage:
    """path: a CLIP folder from the hub. preprocessing: as for load_clip_score."""
    model, weights = clip_from_folder(path, "CLIP-I")
    steps = preprocessing or clip_preprocessing(model)
    return ClipImage(backbone_of(model), model, steps, [checkpoint_of(weights)])
