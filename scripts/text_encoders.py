"""Small CLIPs of every kind that the host has, of its own classes and behind its own tokenizers, weights by seed.

Sizes are tiny, vocabularies the real ones; Gemma's and umt5's, which the host does not bring, are stood in for by another of
sentencepiece's. Mistral (Flux.2 dev) is not here: its tokenizer comes with its weights.
Call scripts.host.enter() first.
"""

from pathlib import Path

import comfy.sd
import comfy.sdxl_clip
import comfy.text_encoders
import comfy.text_encoders.anima as anima
import comfy.text_encoders.flux as flux
import comfy.text_encoders.krea2 as krea2
import comfy.text_encoders.lumina2 as lumina2
import comfy.text_encoders.qwen_image as qwen_image
import comfy.text_encoders.sd3_clip as sd3
import comfy.text_encoders.wan as wan
import comfy.text_encoders.z_image as z_image
import torch

from .models import seeded

HIDDEN = 16
CLIP = {"hidden_size": HIDDEN, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
T5 = {"d_ff": 32, "d_kv": 8, "d_model": HIDDEN, "num_heads": 2, "num_layers": 2}
WIDE = T5 | {"d_model": 4096}  # SD3 joins it to CLIP's rows at its true width
LLM = {
    "hidden_size": HIDDEN,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}
DEEP = LLM | {"num_hidden_layers": 37}  # for those that tap layers by number
PIECES = Path(comfy.text_encoders.__path__[0]) / "t5_pile_tokenizer" / "tokenizer.model"

KINDS = {  # the host's tokenizer, its text encoder, and the sizes of its models by the host's names
    "sdxl": (comfy.sdxl_clip.SDXLTokenizer, lambda: comfy.sdxl_clip.SDXLClipModel, {"clip_l": CLIP, "clip_g": CLIP}),
    "sd3": (
        sd3.SD3Tokenizer,
        lambda: sd3.sd3_clip(dtype_t5=torch.bfloat16),
        {"clip_l": CLIP, "clip_g": CLIP, "t5xxl": WIDE},
    ),
    "flux": (flux.FluxTokenizer, flux.flux_clip, {"clip_l": CLIP, "t5xxl": T5}),
    "klein": (flux.KleinTokenizer, flux.klein_te, {"qwen3_4b": DEEP}),
    "z-image": (z_image.ZImageTokenizer, z_image.te, {"qwen3_4b": LLM}),
    "qwen-image": (qwen_image.QwenImageTokenizer, qwen_image.te, {"qwen25_7b": LLM}),
    "krea2": (krea2.Krea2Tokenizer, krea2.te, {"qwen3vl_4b": DEEP}),
    "lumina2": (lumina2.LuminaTokenizer, lumina2.te, {"gemma2_2b": LLM}),
    "anima": (anima.AnimaTokenizer, anima.te, {"qwen3_06b": LLM}),
    "wan": (wan.WanT5Tokenizer, wan.te, {"umt5xxl": T5}),
}


def text_encoder(kind: str, seed: int = 2) -> comfy.sd.CLIP:
    """A tiny CLIP of one of the KINDS."""
    tokenizer_class, make, sizes = KINDS[kind]
    options = {f"{name}_model_config": dict(size) for name, size in sizes.items()}

    class Target:
        params = {}  # noqa: RUF012
        clip = make()
        tokenizer = tokenizer_class

    data = {"spiece_model": PIECES.read_bytes()} if kind in ("lumina2", "wan") else {}
    made = comfy.sd.CLIP(Target, model_options={"dtype": torch.float32, **options}, tokenizer_data=data)
    for module in made.cond_stage_model.modules():
        if hasattr(module, "visual"):
            module.visual = None  # the eyes of a vision model: full size, and no text goes through them
    seeded(made.cond_stage_model, seed)
    return made
