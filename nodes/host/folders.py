"""Names in the host's folders: the pack's own model folders, files of a training, words that people typed."""

import hashlib
import json
import os

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
