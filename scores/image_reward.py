"""ImageReward v1.0 (arXiv 2304.05977): BLIP reads the prompt with the picture in view; a head rates what it read."""

from pathlib import Path

from .aesthetic import linear_head
from .pictures import ShortestSide
from .scorer import ModelScorer
from .tokens import bert_tokenizer, token_ids
from .weights import IMAGE_REWARD, build, checkpoint_of, layers_in, read_weights

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the raw reward over the authors' data
VISION_HEADS, TEXT_HEADS = 16, 12  # ViT-L/16 and BERT-base: the shapes do not tell


class ImageReward(ModelScorer):
    """(MLP(h_CLS) - mean) / std: about 0 for a usual picture, from -2 to 2."""

    name = "ImageReward v1.0"
    formula = f"(MLP(h_CLS) - {MEAN}) / {STD}"
    needs_prompt = True

    def __init__(self, module, preprocessing, checkpoints, tokenizer):
        super().__init__(module, preprocessing, checkpoints)
        self.tokenizer = tokenizer

    def context(self, prompts, references):
        """Token numbers and masks, one row a picture. Returns [N, 2, 35]."""
        import torch

        return torch.stack(token_ids(self.tokenizer, prompts), dim=1).to(self.device)

    def context_rows(self, context, rows):
        return context[rows]

    def score_pixels(self, pixels, context):
        seen = self.module["vision"](pixel_values=pixels).last_hidden_state  # [B, 1 + patches, 1024]
        read = self.module["text"](
            input_ids=context[:, 0],
            attention_mask=context[:, 1],
            encoder_hidden_states=seen,
            encoder_attention_mask=seen.new_ones(seen.shape[:2]),
            is_decoder=False,
        ).last_hidden_state  # [B, 35, 768]
        return (self.module["head"](read[:, 0])[:, 0] - MEAN) / STD


def load(path: Path) -> ImageReward:
    """path: ImageReward.pt as published, with BERT's vocab.txt beside it."""
    import torch
    from transformers import BlipTextModel, BlipVisionModel

    name = ImageReward.name
    tokenizer = bert_tokenizer(path.parent, name)
    state = read_weights(path, IMAGE_REWARD, name)
    vision_state, text_state = vision_weights(state), text_weights(state)
    vision = build(BlipVisionModel, vision_config(vision_state), vision_state, f'{name}, "{path.name}"')
    text = build(BlipTextModel, text_config(text_state), text_state, f'{name}, "{path.name}"', add_pooling_layer=False)
    module = torch.nn.ModuleDict({"vision": vision, "text": text, "head": linear_head(state, "mlp.layers.")})
    size = vision.config.image_size
    return ImageReward(module, ShortestSide(resize=size, crop=size), [checkpoint_of(path)], tokenizer)


VISION_PREFIX, TEXT_PREFIX = "blip.visual_encoder.", "blip.text_encoder."
VISION_KEYS = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
}
BLOCK_KEYS = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
}


def vision_weights(state: dict) -> dict:
    """The vision tower's tensors under BlipVisionModel's names, in float32."""
    theirs = {key.removeprefix(VISION_PREFIX): value for key, value in state.items() if key.startswith(VISION_PREFIX)}
    return {vision_name(key): value.float() for key, value in theirs.items()}


def vision_name(key: str) -> str:
    if key in VISION_KEYS:
        return VISION_KEYS[key]
    module, kind = key.rsplit(".", 1)
    if not module.startswith("blocks."):
        return f"{VISION_KEYS[module]}.{kind}"
    _, number, part = module.split(".", 2)
    return f"encoder.layers.{number}.{BLOCK_KEYS.get(part, part)}.{kind}"  # mlp.fc1 and mlp.fc2 keep their names


def text_weights(state: dict) -> dict:
    """The text encoder's tensors, whose names BlipTextModel shares, in float32."""
    theirs = {key.removeprefix(TEXT_PREFIX): value for key, value in state.items() if key.startswith(TEXT_PREFIX)}
    return {key: value.float() for key, value in theirs.items() if key != "embeddings.position_ids"}


def vision_config(state: dict):
    """BlipVisionConfig of these shapes; timm's LayerNorm has eps 1e-6."""
    from transformers import BlipVisionConfig

    width, _, patch, _ = state["embeddings.patch_embedding.weight"].shape
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=state["encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=layers_in(state, "encoder.layers."),
        num_attention_heads=VISION_HEADS,
        image_size=patch * round((state["embeddings.position_embedding"].shape[1] - 1) ** 0.5),
        patch_size=patch,
        layer_norm_eps=1e-6,
    )


def text_config(state: dict):
    """BlipTextConfig of these shapes. is_decoder builds the cross-attention; the call then reads both ways."""
    from transformers import BlipTextConfig

    vocabulary, width = state["embeddings.word_embeddings.weight"].shape
    return BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=state["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=state["encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=layers_in(state, "encoder.layer."),
        num_attention_heads=TEXT_HEADS,
        max_position_embeddings=state["embeddings.position_embeddings.weight"].shape[0],
        layer_norm_eps=1e-12,
        is_decoder=True,
    )
