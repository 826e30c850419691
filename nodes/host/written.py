"""What a node wrote, said on it; web/saves.js links it and renews the lists of the Load nodes."""

from pathlib import Path

import folder_paths

from .progress import say


def written(path: Path) -> dict:
    """Says where the file or folder is. Returns the node's ui, which links a file."""
    output, base = Path(folder_paths.get_output_directory()), Path(folder_paths.base_path)
    if not path.is_relative_to(output):
        say(f"Wrote {(path.relative_to(base) if path.is_relative_to(base) else path).as_posix()}.")
        return {}
    place = path.relative_to(output)
    say(f"Wrote output/{place.as_posix()}.")
    return {"written": [view_of(path)]} if path.is_file() else {}


def view_of(path: Path) -> dict:
    """By which names the host gives a file of its output folder out."""
    place = path.relative_to(folder_paths.get_output_directory())
    return {"filename": place.name, "subfolder": place.parent.as_posix(), "type": "output"}
