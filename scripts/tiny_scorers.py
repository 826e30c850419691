"""Tiny random models of the scorers' true architectures, in the files that their authors publish.

Widths and depths are small, everything else is as in the real ones: head counts, activations, key names, file layout.
The numbers come from numpy's frozen RandomState by the tensor's name, so goldens need not carry weights.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

IMAGE, PATCH, DEPTH = 224, 28, 2
WIDTH, TEXT_WIDTH, PROJECTION = 64, 32, 24  # 16 heads divide both, as they do 1280 and 1024
WORDS = 258 + 256  # CLIP's byte alphabet twice, and its two marks
BERT_WIDTH, BERT_WORDS = 48, 64  # 12 heads


def filled(shapes: dict[str, tuple]) -> dict[str, torch.Tensor]:
    """A float32 tensor for every name, drawn by its name; norms' weights near one, the rest small."""
    return {name: drawn(name, shape) for name, shape in shapes.items()}


def drawn(name: str, shape: tuple) -> torch.Tensor:
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    is_norm = name.endswith("weight") and len(shape) == 1
    spread = 0.1 if len(shape) < 2 else max(0.05, float(np.prod(shape[1:])) ** -0.5)
    return torch.tensor(spread * values + is_norm, dtype=torch.float32)


def pixels(pictures: int, size: int = IMAGE) -> torch.Tensor:
    """Deterministic preprocessed pictures. Returns [pictures, 3, size, size]."""
    values = np.random.RandomState(size).standard_normal((pictures, 3, size, size))
    return torch.tensor(values, dtype=torch.float32)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with soft and hard edges, of any size."""
    generator = np.random.RandomState(seed)
    coarse = Image.fromarray(generator.randint(0, 256, (7, 9, 3)).astype(np.uint8)).resize(
        (width, height), Image.BICUBIC
    )
    noise = generator.randint(-20, 21, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse).astype(int) + noise, 0, 255).astype(np.uint8))


def open_clip_block(prefix: str, width: int) -> dict[str, tuple]:
    norms = {f"{prefix}ln_{n}.{kind}": (width,) for n in (1, 2) for kind in ("weight", "bias")}
    return norms | {
        f"{prefix}attn.in_proj_weight": (3 * width, width),
        f"{prefix}attn.in_proj_bias": (3 * width,),
        f"{prefix}attn.out_proj.weight": (width, width),
        f"{prefix}attn.out_proj.bias": (width,),
        f"{prefix}mlp.c_fc.weight": (4 * width, width),
        f"{prefix}mlp.c_fc.bias": (4 * width,),
        f"{prefix}mlp.c_proj.weight": (width, 4 * width),
        f"{prefix}mlp.c_proj.bias": (width,),
    }


def open_clip_weights() -> dict[str, torch.Tensor]:
    """A CLIP under open_clip's names, as in HPS_v2.1_compressed.pt."""
    shapes = {
        "logit_scale": (),
        "positional_embedding": (77, TEXT_WIDTH),
        "text_projection": (TEXT_WIDTH, PROJECTION),
        "token_embedding.weight": (WORDS, TEXT_WIDTH),
        "ln_final.weight": (TEXT_WIDTH,),
        "ln_final.bias": (TEXT_WIDTH,),
        "visual.class_embedding": (WIDTH,),
        "visual.positional_embedding": (1 + (IMAGE // PATCH) ** 2, WIDTH),
        "visual.proj": (WIDTH, PROJECTION),
        "visual.conv1.weight": (WIDTH, 3, PATCH, PATCH),
    }
    shapes |= {f"visual.ln_{n}.{kind}": (WIDTH,) for n in ("pre", "post") for kind in ("weight", "bias")}
    for layer in range(DEPTH):
        shapes |= open_clip_block(f"visual.transformer.resblocks.{layer}.", WIDTH)
        shapes |= open_clip_block(f"transformer.resblocks.{layer}.", TEXT_WIDTH)
    return filled(shapes) | {"logit_scale": torch.tensor(3.0)}


def hf_block(prefix: str, width: int) -> dict[str, tuple]:
    shapes = {}
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"):
        shapes |= {f"{prefix}{name}.weight": (width, width), f"{prefix}{name}.bias": (width,)}
    for name in ("layer_norm1", "layer_norm2"):
        shapes |= {f"{prefix}{name}.weight": (width,), f"{prefix}{name}.bias": (width,)}
    shapes |= {f"{prefix}mlp.fc1.weight": (4 * width, width), f"{prefix}mlp.fc1.bias": (4 * width,)}
    return shapes | {f"{prefix}mlp.fc2.weight": (width, 4 * width), f"{prefix}mlp.fc2.bias": (width,)}


def hf_clip_weights(projection: int = PROJECTION) -> dict[str, torch.Tensor]:
    """A CLIP under transformers' published names, as in PickScore_v1/model.safetensors."""
    vision, text = "vision_model.", "text_model."
    shapes = {
        "visual_projection.weight": (projection, WIDTH),
        "text_projection.weight": (projection, TEXT_WIDTH),
        f"{vision}embeddings.class_embedding": (WIDTH,),
        f"{vision}embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH),
        f"{vision}embeddings.position_embedding.weight": (1 + (IMAGE // PATCH) ** 2, WIDTH),
        f"{text}embeddings.token_embedding.weight": (WORDS, TEXT_WIDTH),
        f"{text}embeddings.position_embedding.weight": (77, TEXT_WIDTH),
    }
    for name, width in (("pre_layrnorm", WIDTH), ("post_layernorm", WIDTH)):
        shapes |= {f"{vision}{name}.weight": (width,), f"{vision}{name}.bias": (width,)}
    shapes |= {f"{text}final_layer_norm.weight": (TEXT_WIDTH,), f"{text}final_layer_norm.bias": (TEXT_WIDTH,)}
    for layer in range(DEPTH):
        shapes |= hf_block(f"{vision}encoder.layers.{layer}.", WIDTH)
        shapes |= hf_block(f"{text}encoder.layers.{layer}.", TEXT_WIDTH)
    return filled(shapes) | {"logit_scale": torch.tensor(3.0)}


def hf_clip_config(activation: str, projection: int = PROJECTION) -> dict:
    """config.json of such a folder. OpenAI's L/14 and B/32 say quick_gelu, ViT-H/14 says gelu."""
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 16,
        "image_size": IMAGE,
        "patch_size": PATCH,
        "hidden_act": activation,
        "projection_dim": projection,
    }
    text = {
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 16,
        "vocab_size": WORDS,
        "max_position_embeddings": 77,
        "hidden_act": activation,
        "projection_dim": projection,
        "bos_token_id": WORDS - 2,
        "eos_token_id": WORDS - 1,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": projection,
        "text_config": text,
        "vision_config": vision,
    }


def image_reward_weights() -> dict[str, torch.Tensor]:
    """The flat state dict of ImageReward.pt."""
    vision, text = "blip.visual_encoder.", "blip.text_encoder."
    shapes = {
        f"{vision}cls_token": (1, 1, WIDTH),
        f"{vision}pos_embed": (1, 1 + (IMAGE // PATCH) ** 2, WIDTH),
        f"{vision}patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        f"{vision}patch_embed.proj.bias": (WIDTH,),
        f"{vision}norm.weight": (WIDTH,),
        f"{vision}norm.bias": (WIDTH,),
        f"{text}embeddings.word_embeddings.weight": (BERT_WORDS, BERT_WIDTH),
        f"{text}embeddings.position_embeddings.weight": (64, BERT_WIDTH),
        f"{text}embeddings.LayerNorm.weight": (BERT_WIDTH,),
        f"{text}embeddings.LayerNorm.bias": (BERT_WIDTH,),
        "blip.vision_proj.weight": (8, WIDTH),
        "blip.vision_proj.bias": (8,),
        "blip.text_proj.weight": (8, BERT_WIDTH),
        "blip.text_proj.bias": (8,),
    }
    for layer in range(DEPTH):
        shapes |= timm_block(f"{vision}blocks.{layer}.") | bert_block(f"{text}encoder.layer.{layer}.")
    shapes |= head_shapes("mlp.layers.", BERT_WIDTH)
    positions = {f"{text}embeddings.position_ids": torch.arange(64)[None]}
    return filled(shapes) | positions


def timm_block(prefix: str) -> dict[str, tuple]:
    shapes = {f"{prefix}attn.qkv.weight": (3 * WIDTH, WIDTH), f"{prefix}attn.qkv.bias": (3 * WIDTH,)}
    for name, (out, into) in {
        "attn.proj": (WIDTH, WIDTH),
        "mlp.fc1": (4 * WIDTH, WIDTH),
        "mlp.fc2": (WIDTH, 4 * WIDTH),
    }.items():
        shapes |= {f"{prefix}{name}.weight": (out, into), f"{prefix}{name}.bias": (out,)}
    return shapes | {f"{prefix}norm{n}.{kind}": (WIDTH,) for n in (1, 2) for kind in ("weight", "bias")}


def bert_block(prefix: str) -> dict[str, tuple]:
    width, shapes = BERT_WIDTH, {}
    for attention, source in (("attention", BERT_WIDTH), ("crossattention", WIDTH)):
        for name, into in (("query", width), ("key", source), ("value", source)):
            shapes |= {f"{prefix}{attention}.self.{name}.weight": (width, into)}
            shapes |= {f"{prefix}{attention}.self.{name}.bias": (width,)}
        shapes |= {f"{prefix}{attention}.output.dense.weight": (width, width)}
        shapes |= {f"{prefix}{attention}.output.dense.bias": (width,)}
        shapes |= {f"{prefix}{attention}.output.LayerNorm.{kind}": (width,) for kind in ("weight", "bias")}
    shapes |= {f"{prefix}intermediate.dense.weight": (96, width), f"{prefix}intermediate.dense.bias": (96,)}
    shapes |= {f"{prefix}output.dense.weight": (width, 96), f"{prefix}output.dense.bias": (width,)}
    return shapes | {f"{prefix}output.LayerNorm.{kind}": (width,) for kind in ("weight", "bias")}


def head_shapes(prefix: str, width: int) -> dict[str, tuple]:
    """The aesthetic and the ImageReward head: width-1024-128-64-16-1."""
    sizes = dict(
        zip((0, 2, 4, 6, 7), zip((width, 1024, 128, 64, 16), (1024, 128, 64, 16, 1), strict=True), strict=True)
    )
    weights = {f"{prefix}{n}.weight": (out, into) for n, (into, out) in sizes.items()}
    return weights | {f"{prefix}{n}.bias": (out,) for n, (_, out) in sizes.items()}


def dino_weights() -> dict[str, torch.Tensor]:
    """A ViT under transformers' published names, as in dino-vits16/model.safetensors."""
    shapes = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.position_embeddings": (1, 1 + 14**2, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, 16, 16),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
        "layernorm.weight": (WIDTH,),
        "layernorm.bias": (WIDTH,),
    }
    for layer in range(DEPTH):
        prefix = f"encoder.layer.{layer}."
        for name in ("query", "key", "value"):
            shapes |= {f"{prefix}attention.attention.{name}.weight": (WIDTH, WIDTH)}
            shapes |= {f"{prefix}attention.attention.{name}.bias": (WIDTH,)}
        shapes |= {f"{prefix}attention.output.dense.weight": (WIDTH, WIDTH)}
        shapes |= {f"{prefix}attention.output.dense.bias": (WIDTH,)}
        shapes |= {f"{prefix}intermediate.dense.weight": (4 * WIDTH, WIDTH)}
        shapes |= {f"{prefix}intermediate.dense.bias": (4 * WIDTH,)}
        shapes |= {f"{prefix}output.dense.weight": (WIDTH, 4 * WIDTH), f"{prefix}output.dense.bias": (WIDTH,)}
        norms = ("layernorm_before", "layernorm_after")
        shapes |= {f"{prefix}{name}.{kind}": (WIDTH,) for name in norms for kind in ("weight", "bias")}
    return filled(shapes)


DINO_CONFIG = {  # as the hub's: eps 1e-12, which the scorer must replace by 1e-6
    "model_type": "vit",
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "qkv_bias": True,
}


def write_clip_vocabulary(folder: Path) -> Path:
    """vocab.json and merges.txt of CLIP's byte alphabet without merges: every letter is a token."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = byte_letters()
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return folder


def byte_letters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in CLIP's order."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + n) for n in range(len(others))]


def write_bert_vocabulary(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pieces = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces, "cat", "dog", "a"]
    (folder / "vocab.txt").write_text("\n".join(words[:-1]) + "\n", encoding="utf-8")
    return folder


def write_clip_folder(folder: Path, activation: str = "gelu", projection: int = PROJECTION) -> Path:
    """A CLIP folder as from the hub: config.json, model.safetensors, vocab.json, merges.txt."""
    write_clip_vocabulary(folder)
    (folder / "config.json").write_text(json.dumps(hf_clip_config(activation, projection)))
    save_file(hf_clip_weights(projection), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_hps(path: Path) -> Path:
    """A .pt as HPS's authors publish it: a dict with "state_dict" and things beside it."""
    write_clip_vocabulary(path.parent)
    torch.save({"epoch": 7, "name": "hps", "state_dict": open_clip_weights()}, path)
    return path


def write_image_reward(folder: Path) -> Path:
    write_bert_vocabulary(folder)
    torch.save(image_reward_weights(), folder / "ImageReward.pt")
    return folder / "ImageReward.pt"


def write_aesthetic(folder: Path, width: int = PROJECTION) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sac+logos+ava1-l14-linearMSE.pth"
    torch.save(filled(head_shapes("layers.", width)), path)
    return path


def write_dino_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(DINO_CONFIG))
    save_file(dino_weights(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder
