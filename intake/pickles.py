"""Torch's pickles (.pt, .pth, .bin, .ckpt): looked through before torch reads them. Nothing is run, nothing is allocated.

torch's own weights_only loader runs nothing either, but believes what a file says of its sizes.
"""

import collections
import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .files import BadFile, open_regular
from .limits import LIMITS

ITEM_BYTES = {
    "UntypedStorage": 1,
    "BoolStorage": 1,
    "ByteStorage": 1,
    "CharStorage": 1,
    "ShortStorage": 2,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "IntStorage": 4,
    "FloatStorage": 4,
    "LongStorage": 8,
    "DoubleStorage": 8,
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
}
OPCODES_AT_MOST = 5_000_000
UNREADABLE = (pickle.UnpicklingError, zipfile.BadZipFile, ArithmeticError, LookupError, TypeError, ValueError)
UNREADABLE += (AttributeError, EOFError, OSError, NotImplementedError, RecursionError)


@dataclass
class Storage:
    """What a tensor lies in. key: of its bytes in the file."""

    key: str
    items: int
    item_bytes: int


class Scan(pickle._Unpickler):  # Python's own, in Python: the one in C allocates what a pickle's opcodes claim
    """Reads a pickle with stand-ins for tensors. Raises: pickle.UnpicklingError for every other name."""

    def __init__(self, file: BinaryIO, also: Collection[str]):
        super().__init__(file, encoding="utf-8")
        self.storages: list[Storage] = []
        self.also = also

    def find_class(self, module: str, name: str):
        if module in ("torch", "torch.storage") and name in ITEM_BYTES:
            return ITEM_BYTES[name]
        found = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): view,
            ("torch._utils", "_rebuild_parameter"): first,
            ("__builtin__", "set"): set,
            ("builtins", "set"): set,
        }.get((module, name), Container if f"{module}.{name}" in self.also else None)
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no weights need")
        return found

    def persistent_load(self, saved) -> Storage:
        word, item_bytes, key, _, items, *_ = saved
        if word != "storage" or not isinstance(item_bytes, int) or not isinstance(items, int) or items < 0:
            raise pickle.UnpicklingError("a storage that is none")
        self.storages.append(Storage(str(key), items, item_bytes))
        return self.storages[-1]


class Container:
    """Stands for a class that holds tensors, and for what is made of it."""

    def __init__(self, *made_from):
        pass


def view(storage: Storage, offset: int, size: tuple, stride: tuple, *_) -> int:
    """A tensor's stand-in. Raises: pickle.UnpicklingError where it would hold more than its storage."""
    counts = [offset, *size, *stride]
    if len(size) != len(stride) or any(not isinstance(count, int) or count < 0 for count in counts):
        raise pickle.UnpicklingError("a tensor that is none")
    if math.prod(size) == 0:
        return 0
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if last >= storage.items or math.prod(size) > storage.items * LIMITS.overlap:
        raise pickle.UnpicklingError("a tensor is larger than what the file holds of it")
    return 0


def first(data, *_):
    return data


def check_pickle(path: Path, also: Collection[str] = ()) -> None:
    """Looks a pickle through. also: classes beside tensors that may stand in it, by their full names.

    Raises: BadFile where torch must not read this file: it names programs, packs or claims more than it holds.
    """
    try:
        with open_regular(path, LIMITS.weights_bytes) as file:
            if zipfile.is_zipfile(file):
                check_archive(file, also)
            else:
                check_legacy(file, also)
    except BadFile:
        raise
    except UNREADABLE as error:
        reason = str(error).splitlines()[0][:200] if str(error) else "it ends too early"
        raise BadFile(
            "Download the file again, or ask for a .safetensors file.\n"
            f'"{path.name}" could not be read as weights ({reason}). Nothing in it was run.'
        ) from error


def check_archive(file: BinaryIO, also: Collection[str]) -> None:
    """torch's form since 1.6: a zip, of which data.pkl says what the rest is."""
    size = file.seek(0, io.SEEK_END)
    archive = zipfile.ZipFile(file)
    entries = {entry.filename: entry for entry in archive.infolist()}
    packed = [entry for entry in entries.values() if entry.compress_type != zipfile.ZIP_STORED]
    if packed or sum(entry.file_size for entry in archive.infolist()) > size or len(entries) < len(archive.infolist()):
        raise pickle.UnpicklingError(
            "its parts are packed, doubled, or larger than the file: torch writes none like that"
        )
    (name,) = [name for name in entries if name.endswith("/data.pkl") or name == "data.pkl"]
    if entries[name].file_size > LIMITS.json_bytes:
        raise pickle.UnpicklingError(f"its heading has more than {LIMITS.json_bytes / 2**20:.0f} MB")
    for storage in scan(io.BytesIO(archive.read(name)), also):
        held = entries[name.removesuffix("data.pkl") + f"data/{storage.key}"]
        if storage.items * storage.item_bytes > held.file_size:
            raise pickle.UnpicklingError("a tensor is larger than what the file holds of it")


def check_legacy(file: BinaryIO, also: Collection[str]) -> None:
    """torch's form before 1.6: pickles one behind the other, and then the bytes."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    storages = [
        storage for _ in range(4) for storage in scan(file, also)
    ]  # magic number, protocol, system, the object itself
    held = {storage.key: storage.items * storage.item_bytes for storage in storages}
    if sum(held.values()) > size:
        raise pickle.UnpicklingError("a tensor is larger than what the file holds of it")


def scan(file: BinaryIO, also: Collection[str]) -> list[Storage]:
    """The storages that the next pickle names. Its opcodes are counted first, so that none claims what is not there."""
    start = file.tell()
    for number, _ in enumerate(pickletools.genops(file)):
        if number > OPCODES_AT_MOST:
            raise pickle.UnpicklingError("its heading has too many parts")
    end = file.tell()
    file.seek(start)
    unpickler = Scan(file, also)
    unpickler.load()
    file.seek(end)
    return unpickler.storages
