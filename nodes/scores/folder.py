"""models/scorers, and scorers whose network the host loads and offloads."""

import inspect
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sd1_clip
import folder_paths
import torch

from ...scores.load import find
from ...scores.scorer import Scorer
from ..host.folders import register_folder

FOLDER = "scorers"
WHOLE_FOLDERS = {"model.safetensors", "pytorch_model.bin"}  # of a model folder: the folder is what one chooses
AUTOMATIC = "automatic"
CLIP_VOCABULARY = Path(inspect.getfile(comfy.sd1_clip)).parent / "sd1_tokenizer"

register_folder(FOLDER, {".safetensors", ".pt", ".pth", ".bin"})


def scorer_files() -> list[str]:
    """What lies in models/scorers: single files, and model folders by their name."""
    names = folder_paths.get_filename_list(FOLDER)
    return sorted({str(Path(name).parent) if Path(name).name in WHOLE_FOLDERS else name for name in names} - {"."})


def chosen_path(kind: str, file: str) -> Path:
    """Where the chosen file or folder lies; for automatic, the one of the scorer's published name."""
    folders = [Path(folder) for folder in folder_paths.get_folder_paths(FOLDER)]
    if file == AUTOMATIC:
        return find(kind, folders)
    for folder in folders:
        path = (folder / file).resolve()
        if path.exists() and path.is_relative_to(folder.resolve()):
            return path
    raise ValueError(f'Choose another file, or "{AUTOMATIC}".\nThere is no "{file}" in models/{FOLDER} any more.')


class HostedScorer(Scorer):
    """A scorer whose network the host loads and offloads; everything else is the scorer's own."""

    def __init__(self, scorer: Scorer):
        self.scorer = scorer
        self.name, self.formula = scorer.name, scorer.formula
        self.needs_prompt, self.needs_references = scorer.needs_prompt, scorer.needs_references
        devices = comfy.model_management.get_torch_device(), comfy.model_management.text_encoder_offload_device()
        # These are transformers' own layers, which the host cannot cast or stream: they are loaded whole or not at all.
        # The list around them is what the host may set its marks on; a transformers model refuses them.
        held = torch.nn.ModuleList([scorer.module]) if scorer.module is not None else None
        self.patcher = comfy.model_patcher.ModelPatcher(held, *devices) if held is not None else None

    def record(self) -> dict:
        return self.scorer.record()

    def score(self, pictures, prompts=None, references=None) -> list[float]:
        if self.patcher:
            comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)
        return self.scorer.score(pictures, prompts, references)
