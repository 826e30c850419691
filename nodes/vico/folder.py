"""models/vico: the concepts that a person has, and the example that comes with the pack."""

import os
from pathlib import Path

import folder_paths

from ...sprite_world import EXAMPLE, EXAMPLE_2, EXAMPLE_CONCEPT, EXAMPLE_CONCEPT_DIT, EXAMPLE_DIT, EXAMPLE_ROBOT
from ..host.folders import register_folder

FOLDER = "vico"

EXAMPLES = {EXAMPLE: EXAMPLE_CONCEPT, EXAMPLE_2: EXAMPLE_ROBOT, EXAMPLE_DIT: EXAMPLE_CONCEPT_DIT}

STEP = "step-"  # so begins the name of a run's step

register_folder(FOLDER, {".safetensors", ".pt"})


def concept_names() -> list[str]:
    """Concepts to choose from, the steps of runs last; an original pair shows as its cross_attention file."""
    files = [(os.path.basename(name), name) for name in folder_paths.get_filename_list(FOLDER)]
    saved = [name for base, name in files if not base.startswith(("embeddings", STEP))]
    return [*saved, *EXAMPLES, *(name for base, name in files if base.startswith(STEP))]


def concept_path(name: str) -> str:
    """The file behind a name of concept_names. Raises: FileNotFoundError where it is gone."""
    return str(EXAMPLES[name]) if name in EXAMPLES else folder_paths.get_full_path_or_raise(FOLDER, name)


def home() -> Path:
    """Where new concepts go."""
    return Path(folder_paths.get_folder_paths(FOLDER)[0])
