"""What a node wrote, said on it; web/saves.js links it and renews the lists of the Load nodes."""

from pathlib import Path

import folder_paths

from .progress import say


def written(path: Path) -> dict:
    """Says where the file or folder is. Returns the node's ui: by which names the host gives a file of its output folder out."""
    output, base = Path(folder_paths.get_output_directory()), Path(folder_paths.base_path)
    if not path.is_relative_to(output):
        say(f"Wrote {(path.relative_to(base) if path.is_relative_to(base) else path).as_posix()}.")
        return {}
    place = path.relative_to(output)
    say(f"Wrote output/{place.as_posix()}.")
    view = {"filename": place.name, "subfolder": place.parent.as_posix(), "type": "output"}
    return {"written": [view]} if path.is_file() else {}
