"""Every scorer by its name: what its files are called, where they are looked for, how they are loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .scorer import Scorer


class Kind(NamedTuple):
    """A scorer that can be loaded: its name for people, its published files (the first found is taken), what to put."""

    title: str
    files: tuple[str, ...]
    put: str


CLIP_FOLDERS = ("clip-vit-base-patch32", "clip-vit-large-patch14", "CLIP-ViT-H-14-laion2B-s32B-b79K")
AESTHETIC_BACKBONE = "clip-vit-large-patch14"
A_CLIP = "a CLIP folder from the hub, such as clip-vit-base-patch32/ (config.json, model.safetensors, vocabulary)"
KINDS = {
    "pickscore": Kind("PickScore v1", ("PickScore_v1",), "the folder PickScore_v1/ (config.json, model.safetensors)"),
    "hps-v2.1": Kind("HPS v2.1", ("HPS_v2.1_compressed.pt",), "the file HPS_v2.1_compressed.pt"),
    "hps-v2": Kind("HPS v2", ("HPS_v2_compressed.pt",), "the file HPS_v2_compressed.pt"),
    "imagereward": Kind(
        "ImageReward v1.0",
        ("ImageReward/ImageReward.pt", "ImageReward.pt"),
        "the folder ImageReward/ with ImageReward.pt, and in it vocab.txt of bert-base-uncased",
    ),
    "aesthetic": Kind(
        "LAION Aesthetic v2",
        ("sac+logos+ava1-l14-linearMSE.pth",),
        f"the file sac+logos+ava1-l14-linearMSE.pth, and OpenAI's folder {AESTHETIC_BACKBONE}/",
    ),
    "clip-score": Kind("CLIP score", CLIP_FOLDERS, A_CLIP),
    "clip-i": Kind("CLIP-I", CLIP_FOLDERS, A_CLIP),
    "dino": Kind("DINO ViT-S/16", ("dino-vits16",), "the folder dino-vits16/ (config.json, model.safetensors)"),
}


def existing(kind: str, path: Path) -> Path:
    """The path, where there is something at it."""
    if not path.exists():
        raise ValueError(
            f'Put {KINDS[kind].files[0]} there.\nThere is no "{path}"; {KINDS[kind].title} needs {KINDS[kind].put}.'
        )
    return path


def load_scorer(kind: str, path: Path, tokenizer: Path | None = None, antialias: bool = True) -> Scorer:
    """The scorer of a file or folder.

    tokenizer: a folder with CLIP's vocabulary, for files that come without (the host's comfy/sd1_tokenizer).
    antialias: HPS alone; False resizes as its package did in 2023, when the published figures were made.
    The aesthetic predictor's CLIP folder lies beside its file.
    """
    path = existing(kind, Path(path))
    if kind == "pickscore":
        from .pickscore import load

        return load(path, tokenizer)
    if kind in ("hps-v2", "hps-v2.1"):
        from .hps import load

        return load(path, kind.removeprefix("hps-"), tokenizer, antialias)
    if kind == "imagereward":
        from .image_reward import load

        return load(path / "ImageReward.pt" if path.is_dir() else path)
    if kind == "aesthetic":
        from .aesthetic import load

        return load(path, path.parent / AESTHETIC_BACKBONE)
    if kind == "dino":
        from .dino import load

        return load(path)
    from .clip_score import load_clip_image, load_clip_score

    return load_clip_image(path) if kind == "clip-i" else load_clip_score(path, tokenizer)


def find(kind: str, folders: Sequence[Path]) -> Path:
    """Where the scorer's published file or folder lies. Raises the sentence that says what to put where."""
    for folder in folders:
        for name in KINDS[kind].files:
            if (Path(folder) / name).exists():
                return Path(folder) / name
    found = sorted(entry.name for folder in folders if Path(folder).is_dir() for entry in Path(folder).iterdir())
    raise ValueError(
        f"Put {KINDS[kind].files[0]} into {folders[0]}.\n"
        f"{KINDS[kind].title} is not here: it is {KINDS[kind].put}. Found there: {', '.join(found) or 'nothing'}."
    )
