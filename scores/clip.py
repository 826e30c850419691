"""CLIP as a scorer: cosine of picture and prompt, of pictures among themselves; open_clip's weights for CLIPModel."""

from pathlib import Path

from .scorer import ModelScorer, distinct
from .tokens import clip_tokenizer, token_ids
from .weights import HF_CLIP, build, layers_in, read_config, read_weights, weights_in


def clip_from_folder(folder: Path, scorer: str):
    """transformers' CLIPModel of a hub folder (config.json, model.safetensors), and its weight file."""
    from transformers import CLIPConfig, CLIPModel

    config = read_config(CLIPConfig, folder, scorer)
    weights = weights_in(folder, scorer)
    return build(CLIPModel, config, read_weights(weights, HF_CLIP, scorer), f'{scorer}, "{folder}"'), weights


def picture_embeddings(model, pixels):
    """L2-normalised projections of pictures, alike on transformers 4 and 5. pixels: [B, 3, H, W]. Returns [B, D]."""
    pooled = model.vision_model(pixel_values=pixels).pooler_output  # [B, width]
    return unit(model.visual_projection(pooled))


def text_embeddings(model, ids, mask):
    """L2-normalised projections of prompts. ids, mask: [B, 77]. Returns [B, D]."""
    pooled = model.text_model(input_ids=ids, attention_mask=mask).pooler_output  # [B, width]
    return unit(model.text_projection(pooled))


def unit(embeddings):
    return embeddings / embeddings.norm(dim=-1, keepdim=True)


class ClipTextScorer(ModelScorer):
    """scale · cosine(picture, prompt): the form of PickScore, HPS v2, CLIP score and CLIP-T."""

    needs_prompt = True
    scale = 1.0

    def __init__(self, module, preprocessing, checkpoints, tokenizer):
        super().__init__(module, preprocessing, checkpoints)
        self.tokenizer = tokenizer

    def context(self, prompts, references):
        """The prompts' embeddings, each distinct prompt once. Returns [N, D]."""
        import torch

        texts, places = distinct(prompts)
        batches = [texts[i : i + self.batch_size] for i in range(0, len(texts), self.batch_size)]
        return torch.cat([self.embed_prompts(batch) for batch in batches])[places] if texts else None

    def embed_prompts(self, prompts):
        ids, mask = token_ids(self.tokenizer, prompts)
        return text_embeddings(self.module, ids.to(self.device), mask.to(self.device))

    def context_rows(self, context, rows):
        return context[rows]

    def score_pixels(self, pixels, context):
        return self.scale * (picture_embeddings(self.module, pixels) * context).sum(dim=-1)


class ReferenceScorer(ModelScorer):
    """Mean cosine between a picture and every reference: the form of DINO and CLIP-I.

    The mean over the pictures of these numbers is the papers' mean over all (real, generated) pairs.
    """

    needs_references = True
    formula = "mean cosine with the reference photos"

    def embed(self, pixels):
        """Unit embeddings. pixels: [B, 3, H, W]. Returns [B, D]."""
        raise NotImplementedError

    def context(self, prompts, references):
        """The mean of the references' unit embeddings: its dot product is the mean cosine. Returns [D]."""
        import torch

        batches = [references[i : i + self.batch_size] for i in range(0, len(references), self.batch_size)]
        return torch.cat([self.embed(self.preprocessing(batch).to(self.device)) for batch in batches]).mean(dim=0)

    def score_pixels(self, pixels, context):
        return self.embed(pixels) @ context


def from_open_clip(state: dict) -> dict:
    """open_clip's state dict of a ViT CLIP under transformers' CLIPModel names, in float32.

    in_proj is split into q, k, v; the two projections are transposed; the causal mask is a buffer there and left out.
    """
    mapped = {"logit_scale": state["logit_scale"], "text_projection.weight": state["text_projection"].T}
    mapped["visual_projection.weight"] = state["visual.proj"].T
    mapped["vision_model.embeddings.class_embedding"] = state["visual.class_embedding"]
    for theirs, ours in PLAIN_KEYS.items():
        mapped[ours] = state[theirs]
    for theirs, ours in (("visual.transformer.resblocks.", "vision_model."), ("transformer.resblocks.", "text_model.")):
        for key, value in state.items():
            if key.startswith(theirs):
                number, name = key.removeprefix(theirs).split(".", 1)
                mapped.update(block_weights(f"{ours}encoder.layers.{number}.", name, value))
    return {key: value.float().contiguous() for key, value in mapped.items()}


PLAIN_KEYS = {  # open_clip's name: CLIPModel's
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
BLOCK_KEYS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def block_weights(prefix: str, name: str, value) -> dict:
    """One tensor of open_clip's transformer block under CLIPModel's names."""
    if name.startswith("attn.in_proj_"):
        kind = name.removeprefix("attn.in_proj_")  # weight or bias
        return {f"{prefix}self_attn.{p}_proj.{kind}": part for p, part in zip("qkv", value.chunk(3), strict=True)}
    module, kind = name.rsplit(".", 1)
    return {f"{prefix}{BLOCK_KEYS[module]}.{kind}": value}


def open_clip_config(state: dict, vision_heads: int = 16, text_heads: int = 16):
    """CLIPConfig of an open_clip state dict: sizes from its shapes, heads as given (ViT-H/14 has 16 and 16)."""
    from transformers import CLIPConfig

    width, _, patch, _ = state["visual.conv1.weight"].shape
    grid = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    vocabulary, text_width = state["token_embedding.weight"].shape
    projection = state["text_projection"].shape[1]
    vision = {
        "hidden_size": width,
        "intermediate_size": state["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": layers_in(state, "visual.transformer.resblocks."),
        "num_attention_heads": vision_heads,
        "patch_size": patch,
        "image_size": grid * patch,
        "projection_dim": projection,
        "hidden_act": "gelu",
    }
    text = {
        "hidden_size": text_width,
        "intermediate_size": state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": layers_in(state, "transformer.resblocks."),
        "num_attention_heads": text_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": state["positional_embedding"].shape[0],
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "projection_dim": projection,
        "hidden_act": "gelu",
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)


def tokenizer_for(folder: Path, tokenizer: Path | None, scorer: str):
    """The vocabulary beside the weights where it is there, else the one that was given (the host's)."""
    beside = (folder / "vocab.json").is_file() or tokenizer is None
    return clip_tokenizer(folder if beside else tokenizer, scorer)
