"""Files for `vico_one_photo.json` where no real ones are.

An SD1.x-shaped checkpoint and a concept, both random, and a real photo. They load through the ordinary loaders and show how everything is wired; what they draw is noise.
"""

from pathlib import Path

import torch

CHECKPOINT = "sd15_shape_random.ckpt"
CONCEPT = "cat_random.safetensors"
PHOTO = "cat.png"
WIDTH = 320  # SD1.x's, by which the host knows the family; its levels are not widened here, to stay small
BUFFER = 2**21


def strided(shape: tuple[int, ...], buffer: torch.Tensor) -> torch.Tensor:
    """A tensor of any size that looks into one small buffer: the file stays small, the host loads it as it is."""
    steps = [601, 211, 3, 1][-len(shape) :] if len(shape) > 1 else [1]
    if len(shape) == 2:
        steps = [29, 1]
    return torch.as_strided(buffer, shape, steps)


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    buffer = torch.randn(BUFFER, generator=torch.Generator().manual_seed(seed)).half() * 0.02
    ones = torch.ones(8192).half()
    is_scale = lambda key, shape: len(shape) == 1 and key.endswith("weight")  # noqa: E731
    return {k: (ones[: s[0]] if is_scale(k, s) else strided(s, buffer)) for k, s in shapes.items()}


def shapes_of(module: torch.nn.Module, prefix: str) -> dict[str, tuple[int, ...]]:
    return {prefix + key: tuple(p.shape) for key, p in module.state_dict().items()}


def write_checkpoint(path: Path) -> None:
    """CheckpointLoaderSimple takes it for SD1.5: a U-Net of width 320, CLIP-L, and TAESD for a VAE."""
    import comfy.ldm.modules.diffusionmodules.openaimodel as unet
    import comfy.ops
    import comfy.sd1_clip
    import comfy.taesd.taesd

    from vico_spin.scripts.models import seeded, unet_config

    layout = unet_config(width=WIDTH, channel_mult=(1, 1, 1, 1), context_dim=768)
    with torch.device("meta"):
        model = unet.UNetModel(**layout, num_heads=8, num_head_channels=-1, operations=comfy.ops.disable_weight_init)
        text = comfy.sd1_clip.SDClipModel(dtype=torch.float16)
    shapes = shapes_of(model, "model.diffusion_model.")
    shapes |= shapes_of(text.transformer, "cond_stage_model.transformer.")
    weights = random_weights(shapes, seed=1)
    vae = seeded(comfy.taesd.taesd.TAESD(), 3).state_dict()
    weights |= {f"first_stage_model.{k}": v for k, v in vae.items() if k.startswith("taesd_")}
    torch.save({"state_dict": weights}, path)


def write_concept(path: Path) -> None:
    from vico_spin.vico_core import ImageAttention, ViCoConcept

    torch.manual_seed(0)
    modules = {f"output_blocks.{n}.1": ImageAttention(WIDTH, 8, WIDTH // 8).state_dict() for n in (4, 6, 8, 10)}
    ViCoConcept(modules, {"l": torch.randn(1, 768) * 0.02}, placeholder="*", initialiser="cat").save(path)


def write_photo(path: Path) -> None:
    """Chelsea the cat, a photo that scikit-image carries."""
    from PIL import Image
    from skimage import data

    Image.fromarray(data.chelsea()).save(path)


def write_one_photo_files(base: Path) -> None:
    """Puts what is not there yet into the host's base directory."""
    wanted = {
        base / "models" / "checkpoints" / CHECKPOINT: write_checkpoint,
        base / "models" / "vico" / CONCEPT: write_concept,
        base / "input" / PHOTO: write_photo,
    }
    for path, write in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            partial = path.with_name("partial_" + path.name)
            write(partial)
            partial.rename(path)
