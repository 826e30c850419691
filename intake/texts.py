"""Texts as people's programs write them: UTF-8, UTF-16 and the Windows code page, with or without a byte-order mark."""

import codecs
from pathlib import Path

from .files import Unusable, read_bytes
from .limits import LIMITS

MARKS = (  # the longer first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
ALL_MARKS = tuple(mark for mark, _ in MARKS)


def decode_text(content: bytes, name: str) -> str:
    """By its byte-order mark; else UTF-8, else cp1252. Unusable where it is none of them (binary data)."""
    encoding = None
    if content.startswith(ALL_MARKS):
        encoding = next(encoding for mark, encoding in MARKS if content.startswith(mark))
    for candidate in [encoding] if encoding else ["utf-8", "cp1252"]:
        try:
            text = content.decode(candidate)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise Unusable(name, "is no text", "Save the file as UTF-8.")


def read_text(path: Path, most: int | None = None) -> str:
    """The file's text, at most `most` bytes (Limits.text_bytes). Raises: Unusable."""
    return decode_text(read_bytes(path, LIMITS.text_bytes if most is None else most), path.name)


def lines_of(text: str) -> list[str]:
    """The lines that are not empty. A line ends at a line feed alone: U+2028 and U+0085 are text."""
    return [line.strip() for line in text.split("\n") if line.strip()]
