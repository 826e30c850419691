"""Files and folders: regular files alone, nothing outside the folder that was given, hidden ones left alone."""

import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO


class BadFile(ValueError):
    """A file, row or cell that cannot be used; the sentence names it and says what was wrong."""


class Unusable(BadFile):
    """A file that cannot be used: its name, what is wrong with it, and what to do."""

    def __init__(self, name: str | Path, reason: str, advice: str = "Choose another file."):
        super().__init__(f'{advice}\n"{name}" {reason}.')
        self.name, self.reason = str(name), reason


def open_regular(path: Path, most: int) -> BinaryIO:
    """The file, open for reading bytes. Unusable where it is none (a folder, a pipe, a device) or larger than `most` bytes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise Unusable(path, f"cannot be opened ({error.strerror})") from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise Unusable(path, "is no ordinary file")
    if found.st_size > most:
        os.close(descriptor)
        raise Unusable(path, f"has {found.st_size / 2**20:.0f} MB; at most {most / 2**20:.0f} MB are read")
    return os.fdopen(descriptor, "rb")


def check_file(path: Path, most: int) -> None:
    """Raises: BadFile where a library that takes paths alone must not open this one, see open_regular."""
    open_regular(path, most).close()


def read_bytes(path: Path, most: int) -> bytes:
    """The file's content. Raises: BadFile, see open_regular."""
    with open_regular(path, most) as file:
        return file.read()


def inside(folder: Path, name: str) -> Path | None:
    """A file that a table names, where it lies below the table's folder; None where it leads out.

    A link inside the folder may point to another file of it. A hub's cache keeps its files in `blobs` beside `snapshots`,
    and links to them: those count as inside.
    """
    try:
        path = (folder / name).resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name that no file can have
        return None
    return path if any(path.is_relative_to(root) for root in roots_of(folder)) else None


def roots_of(folder: Path) -> list[Path]:
    """Where files of this folder may lie: in it, and in the blobs of the hub cache that it is a snapshot of."""
    whole = folder.resolve()
    for parent in (whole, *whole.parents):
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
            return [whole, parent.parent / "blobs"]
    return [whole]


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a file below the folder is a link to one elsewhere."""
    return path.is_symlink() and inside(folder, str(path.relative_to(folder))) is None


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below the folder in order of its path, without hidden files and folders; links to folders are not followed."""
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(where) / name for name in sorted(files) if not name.startswith("."))


def pictures_below(folder: Path, endings: Collection[str]) -> list[Path]:
    """Every file below the folder with one of the endings, in order of its path. Raises: BadFile where it is none, or a link leads out."""
    if not Path(folder).is_dir():
        raise BadFile(f'Choose another folder.\nThere is no "{folder}".')
    found = sorted(path for path in files_below(folder) if path.suffix.lower() in endings)
    if lost := next((path for path in found if leads_out(path, folder)), None):
        raise BadFile(f'Put the file itself there, no link.\n"{lost}" leads out of "{folder}".')
    return found
