"""What long runs keep, so that they can be cut, shared by several processes, and gone on with on another machine."""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..intake import write_atomically


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An .npz file, whole or not at all."""

    def save(partial: Path) -> None:
        with open(partial, "wb") as file:  # numpy would add .npz to a path's name
            np.savez_compressed(file, **arrays)

    write_atomically(path, save)


def claim(folder: Path, weights: Path, plan: dict) -> None:
    """Raises: SystemExit where the folder holds what was made by another plan or from another base."""
    made_from = json.dumps({"base": hashlib.sha256(weights.read_bytes()).hexdigest(), **plan})
    path = folder / "plan.json"
    if path.exists() and path.read_text() != made_from:
        raise SystemExit(f"{folder} holds another plan's or base's results: name another folder, or delete it.")
    if not path.exists():
        write_atomically(path, lambda partial: partial.write_text(made_from))


@contextmanager
def held(path: Path, wait: bool) -> Iterator[bool]:
    """Whether this process may make what the path stands for; a process that ends lets go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
