"""Golden numbers of the scorers' originals, for tests/golden/scores: python -m vico_spin.scripts.make_scores_golden [--check]

Runs in .venv-t4 (make transformers4), where the originals' own code runs: open_clip for HPS v2, and the BLIP of the
published image-reward package, which is fetched by pip and left outside the repository. OpenAI's CLIP and DINO are
written out here in plain torch, after their papers. The weights are benchmarks/scores_tiny.py's, drawn by name.
--check makes the numbers again and compares instead of writing.
"""

import argparse
import importlib
import math
import subprocess
import sys
import tempfile
import types
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from . import tiny_scorers as tiny

FOLDER = Path(__file__).parent.parent / "tests" / "golden" / "scores"
PROMPTS = [
    "a photo of a cat",
    "  A  photo of\tCATS &amp; dogs!  ",
    "it's 1998, they're here; we'll (x:1.2) [go]",
    "café naïve Ångström 東京 😀",
    "word " * 90,
    "semi-colon;dash-ed under_score 3.14 #tag @me",
]


def open_clip_golden() -> dict:
    """HPS v2: open_clip's own model, scores as hpsv2 computes them (image_features @ text_features.T, the diagonal)."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(
        layers=tiny.DEPTH, width=tiny.WIDTH, head_width=tiny.WIDTH // 16, patch_size=tiny.PATCH, image_size=tiny.IMAGE
    )
    text = CLIPTextCfg(vocab_size=tiny.WORDS, width=tiny.TEXT_WIDTH, heads=16, layers=tiny.DEPTH)
    model = CLIP(tiny.PROJECTION, vision, text).eval()
    model.load_state_dict(tiny.open_clip_weights())
    ids = some_ids(pad=0)
    pictures, prompts = model.encode_image(tiny.pixels(3), True), model.encode_text(ids, True)
    return {"ids": ids, "pictures": pictures, "prompts": prompts, "scores": (pictures @ prompts.T).diagonal()}


def some_ids(pad: int) -> torch.Tensor:
    """Three prompts of byte tokens: short, longer, as long as can be. [3, 77]"""
    ids = torch.full((3, 77), pad)
    for row, length in enumerate((3, 20, 75)):
        body = torch.arange(length) * (row + 3) % 500
        ids[row, : length + 2] = torch.cat([torch.tensor([tiny.WORDS - 2]), body, torch.tensor([tiny.WORDS - 1])])
    return ids


def tokens_golden() -> dict:
    """open_clip's token numbers of awkward prompts, by the vocabulary that CLIP was trained with."""
    from open_clip import tokenize

    return {"ids": tokenize(PROMPTS).to(torch.int32)}


def clip_golden() -> dict:
    """OpenAI's CLIP in plain torch, with both activations; the aesthetic head on top of the quick_gelu one."""
    weights, ids, golden = tiny.hf_clip_weights(), some_ids(pad=tiny.WORDS - 1), {}
    for name, activation in (("gelu", F.gelu), ("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x))):
        golden[f"{name}.pictures"] = F.normalize(clip_picture(weights, tiny.pixels(3), activation), dim=-1)
        golden[f"{name}.prompts"] = F.normalize(clip_prompt(weights, ids, activation), dim=-1)
    cosine = (golden["gelu.pictures"] * golden["gelu.prompts"]).sum(-1)
    head = tiny.filled(tiny.head_shapes("layers.", tiny.PROJECTION))
    rated = golden["quick_gelu.pictures"]
    for number in (0, 2, 4, 6, 7):
        rated = rated @ head[f"layers.{number}.weight"].T + head[f"layers.{number}.bias"]
    return golden | {"ids": ids, "pickscore": weights["logit_scale"].exp() * cosine, "aesthetic": rated[:, 0]}


def clip_picture(w: dict, x: torch.Tensor, activation) -> torch.Tensor:
    """CLIP's vision tower and projection. x: [B, 3, H, W]. Returns [B, D]."""
    p = "vision_model."
    x = F.conv2d(x, w[f"{p}embeddings.patch_embedding.weight"], stride=tiny.PATCH).flatten(2).mT  # [B, N, width]
    x = torch.cat([w[f"{p}embeddings.class_embedding"].expand(len(x), 1, -1), x], dim=1)
    x = norm(x + w[f"{p}embeddings.position_embedding.weight"], w, f"{p}pre_layrnorm")
    for layer in range(tiny.DEPTH):
        x = clip_block(x, w, f"{p}encoder.layers.{layer}.", activation, mask=0)
    return norm(x[:, 0], w, f"{p}post_layernorm") @ w["visual_projection.weight"].T


def clip_prompt(w: dict, ids: torch.Tensor, activation) -> torch.Tensor:
    """CLIP's text tower, read at the end mark (the highest number). ids: [B, 77]. Returns [B, D]."""
    p = "text_model."
    x = w[f"{p}embeddings.token_embedding.weight"][ids] + w[f"{p}embeddings.position_embedding.weight"]
    causal = torch.full((77, 77), -math.inf).triu(1)
    for layer in range(tiny.DEPTH):
        x = clip_block(x, w, f"{p}encoder.layers.{layer}.", activation, causal)
    x = norm(x, w, f"{p}final_layer_norm")[torch.arange(len(ids)), ids.argmax(dim=-1)]
    return x @ w["text_projection.weight"].T


def clip_block(x, w, p, activation, mask):
    y = norm(x, w, f"{p}layer_norm1")
    q, k, v = (linear(y, w, f"{p}self_attn.{part}_proj") for part in "qkv")
    x = x + linear(attention(q, k, v, 16, mask), w, f"{p}self_attn.out_proj")
    return x + linear(activation(linear(norm(x, w, f"{p}layer_norm2"), w, f"{p}mlp.fc1")), w, f"{p}mlp.fc2")


def attention(q, k, v, heads: int, mask=0):
    """softmax(q·k / √d + mask)·v by heads. Each [B, N, width]."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # [B, heads, N, d]
    weights = (q @ k.mT / math.sqrt(q.shape[-1]) + mask).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(x, w, name, eps: float = 1e-5):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def dino_golden() -> dict:
    """DINO's ViT in plain torch (LayerNorm eps 1e-6): CLS at 224², and at 256² with its stretched positions."""
    weights = tiny.dino_weights()
    return {f"cls{size}": dino_cls(weights, tiny.pixels(3, size)) for size in (224, 256)}


def dino_cls(w: dict, x: torch.Tensor) -> torch.Tensor:
    """x: [B, 3, H, H]. Returns the CLS token after the last norm, [B, width]."""
    positions, grid = w["embeddings.position_embeddings"], x.shape[-1] // 16
    if grid != 14:  # vision_transformer.py, interpolate_pos_encoding: the scale carries 0.1 against rounding
        old = positions[:, 1:].reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
        new = F.interpolate(old, scale_factor=((grid + 0.1) / 14, (grid + 0.1) / 14), mode="bicubic")
        positions = torch.cat([positions[:, :1], new.permute(0, 2, 3, 1).reshape(1, grid * grid, -1)], dim=1)
    p = "embeddings.patch_embeddings.projection"
    x = F.conv2d(x, w[f"{p}.weight"], w[f"{p}.bias"], stride=16).flatten(2).mT
    x = torch.cat([w["embeddings.cls_token"].expand(len(x), -1, -1), x], dim=1) + positions
    for layer in range(tiny.DEPTH):
        p = f"encoder.layer.{layer}."
        y = norm(x, w, f"{p}layernorm_before", 1e-6)
        q, k, v = (linear(y, w, f"{p}attention.attention.{name}") for name in ("query", "key", "value"))
        x = x + linear(attention(q, k, v, heads=4), w, f"{p}attention.output.dense")
        y = F.gelu(linear(norm(x, w, f"{p}layernorm_after", 1e-6), w, f"{p}intermediate.dense"))
        x = x + linear(y, w, f"{p}output.dense")
    return norm(x[:, 0], w, "layernorm", 1e-6)


def image_reward_golden() -> dict:
    """The published package's own BLIP, head and normalisation."""
    from transformers import BertConfig

    original, weights = original_image_reward(), tiny.image_reward_weights()
    vision = original["vit"].VisionTransformer(
        img_size=tiny.IMAGE, patch_size=tiny.PATCH, embed_dim=tiny.WIDTH, depth=tiny.DEPTH, num_heads=16
    )
    config = BertConfig(
        vocab_size=tiny.BERT_WORDS,
        hidden_size=tiny.BERT_WIDTH,
        num_hidden_layers=tiny.DEPTH,
        num_attention_heads=12,
        intermediate_size=96,
        max_position_embeddings=64,
        add_cross_attention=True,
        encoder_width=tiny.WIDTH,
    )
    text, head = (
        original["med"].BertModel(config=config, add_pooling_layer=False),
        original["reward"].MLP(tiny.BERT_WIDTH),
    )
    for module, prefix in ((vision, "blip.visual_encoder."), (text, "blip.text_encoder."), (head, "mlp.")):
        module.eval().load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    ids = torch.arange(3 * 35).reshape(3, 35) % tiny.BERT_WORDS
    mask = (torch.arange(35) < torch.tensor([[5], [20], [35]])).long()
    seen = vision(tiny.pixels(3))
    read = text(
        ids * mask,
        attention_mask=mask,
        encoder_hidden_states=seen,
        encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long),
        return_dict=True,
    ).last_hidden_state
    rewards = (head(read[:, 0]) - 0.16717362830052426) / 1.0333394966054072
    return {"ids": ids * mask, "mask": mask, "rewards": rewards[:, 0]}


def original_image_reward() -> dict:
    """Modules of the image-reward package, without the packages it imports for training and downloads."""
    import transformers.modeling_utils as there
    import transformers.pytorch_utils as here

    for name in ("apply_chunking_to_forward", "find_pruneable_heads_and_indices", "prune_linear_layer"):
        setattr(there, name, getattr(here, name))  # moved since the package was written
    for name in ("", ".nn", ".nn.checkpoint", ".nn.checkpoint.checkpoint_activations"):
        sys.modules[f"fairscale{name}"] = types.ModuleType(f"fairscale{name}")
    sys.modules["fairscale.nn.checkpoint.checkpoint_activations"].checkpoint_wrapper = lambda module: module
    root = Path(tempfile.mkdtemp())
    fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(root), "image-reward==1.5"]
    subprocess.run(fetch, check=True)
    with zipfile.ZipFile(next(root.glob("*.whl"))) as wheel:
        wheel.extractall(root)
    for name, folder in (
        ("ImageReward", ""),
        ("ImageReward.models", "models"),
        ("ImageReward.models.BLIP", "models/BLIP"),
    ):
        package = types.ModuleType(name)  # its __init__ would import the trainer
        package.__path__ = [str(root / "ImageReward" / folder)]
        sys.modules[name] = package
    paths = {"vit": ".models.BLIP.vit", "med": ".models.BLIP.med", "reward": ".ImageReward"}
    return {name: importlib.import_module(f"ImageReward{path}") for name, path in paths.items()}


GOLDENS = {
    "open_clip": open_clip_golden,
    "tokens": tokens_golden,
    "clip": clip_golden,
    "dino": dino_golden,
    "image_reward": image_reward_golden,
}


def compare(name: str, made: dict, kept: dict) -> None:
    for key, value in made.items():
        off = (value.double() - kept[key].double()).abs().max().item()
        print(f"{name}.{key}: {off:.2e}")
        if off > 1e-6:
            raise SystemExit(f"{name}.{key} differs from the golden by {off}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the goldens instead of writing them")
    check = parser.parse_args().check
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, make in GOLDENS.items():
        with torch.inference_mode():
            made = {key: value.clone().contiguous() for key, value in make().items()}
        if check:
            compare(name, made, load_file(FOLDER / f"{name}.safetensors"))
        else:
            save_file(made, FOLDER / f"{name}.safetensors")


if __name__ == "__main__":
    main()
