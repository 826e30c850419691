"""Files that appear whole or not at all; what a killed run left half written goes when its folder is next written to."""

import os
import platform
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

HOST = re.sub(r"\W", "-", platform.node()) or "host"
LEFTOVER = re.compile(r"\..+\.(?P<host>[\w-]+)\.(?P<process>\d+)\.tmp")
FORGOTTEN = 24 * 3600  # seconds after which another machine's is one
swept: set[Path] = set()  # folders that this process has looked through
sweeping = threading.Lock()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls write(temporary path), then renames.

    A reader sees the old file or the new one, also after kill -9 or on a full disk.
    Raises: OSError with a sentence where the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{HOST}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        write(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f'Look whether the folder is writable and the disk has room.\n"{path}" could not be written ({reason}).'
        ) from error
    finally:
        if temporary.exists():
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """The text in UTF-8, whole or not at all. Raises: OSError, see write_atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def sweep(folder: Path) -> None:
    """Removes what killed processes left in the folder, once a process."""
    with sweeping:
        whole = folder.resolve()
        if whole in swept:
            return
        swept.add(whole)
        for name in os.listdir(whole):
            if (match := LEFTOVER.fullmatch(name)) and is_leftover(whole / name, match["host"], int(match["process"])):
                (whole / name).unlink(missing_ok=True)


def is_leftover(path: Path, host: str, process: int) -> bool:
    """Whether nobody writes it any more: its process is gone, or was another one before this that had the same number."""
    if host != HOST or os.name != "posix":  # Windows' os.kill(…, 0) would end it
        return path.exists() and time.time() - path.stat().st_mtime > FORGOTTEN
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
