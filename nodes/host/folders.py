"""Names in the host's folders: the pack's own model folders, files of a training, words that people typed."""

import hashlib
import json
import os
from pathlib import Path

import folder_paths


def register_folder(name: str, endings: set[str], *homes: str) -> None:
    """models/<name> (or `homes`), beside whatever extra_model_paths.yaml named for it before; files of these endings."""
    for home in homes or (folder_paths.models_dir,):
        folder_paths.add_model_folder_path(name, os.path.join(home, name))
    paths, extensions = folder_paths.folder_names_and_paths[name]
    folder_paths.folder_names_and_paths[name] = (paths, set(extensions) | endings)


def as_folder_name(text: str, otherwise: str) -> str:
    """Letters, digits, space, dash and underscore of the text; every other sign becomes an underscore."""
    return "".join(sign if sign.isalnum() or sign in "-_ " else "_" for sign in text).strip() or otherwise


def run_name(name: str, made_from: dict) -> str:
    """A training's name: what the person called it, and a hash of all that decides its result.

    The same training again finds its folder and goes on; anything else has another one.
    """
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    return f"{as_folder_name(name, 'run')}-{digest[:10]}"


def free_path(home: Path, prefix: str, otherwise: str) -> Path:
    """<home>/<prefix>_00001_ with the first number that no file or folder has, its folder made.

    The prefix may name subfolders and the host's %year% and the like; without a name in it, `otherwise` is the name.
    Raises: the host's exception where it leads out of `home`.
    """
    home.mkdir(parents=True, exist_ok=True)
    folder, name, _, _, _ = folder_paths.get_save_image_path(prefix, str(home))
    name = name.strip(". ") or otherwise
    taken = [f"{entry}.".casefold() for entry in os.listdir(folder)]  # a folder, which has no suffix, ends in a dot too
    stems = (f"{name}_{number:05}_" for number in range(1, len(taken) + 2))
    free = (stem for stem in stems if not any(entry.startswith(f"{stem}.".casefold()) for entry in taken))
    return Path(folder) / next(free)


def marks(*paths: Path) -> list[tuple[str, int, int]]:
    """(name, time, size) of the files, and of all files below folders: what is read again when one of them has changed."""
    files = [
        file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*"))) if file.is_file()
    ]
    return [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files]
