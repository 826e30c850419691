"""A small drawn world: pictures whose content is known exactly, a model trained on them, and measures of what it draws."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"

# What the Load nodes offer beside a person's own files, so that there is something to load on a fresh install.
EXAMPLE = "(Sprite World example)"
EXAMPLE_2 = "(Sprite World example, robot)"
EXAMPLE_DIT = "(Sprite World DiT example)"
EXAMPLE_CONCEPT = WEIGHTS / "example_concept.safetensors"
EXAMPLE_ROBOT = WEIGHTS / "example_robot.safetensors"
EXAMPLE_CONCEPT_DIT = WEIGHTS / "example_concept_dit.safetensors"
EXAMPLE_LORA = WEIGHTS / "example_spin_lora.safetensors"
CONTROLNET = WEIGHTS / "controlnet" / "sprite_world_canny.safetensors"  # the host lists all that lies in its folder

# The models that the world comes with, and the file that each one's network lies in; the first file has text encoder and VAE.
ARCHITECTURES = {"U-Net": WEIGHTS / "base.safetensors", "DiT": WEIGHTS / "dit.safetensors"}
