"""Captions: in a .txt, .caption or .json of the picture's name, beside it or in the same archive."""

from pathlib import Path

from .files import read_bytes
from .limits import LIMITS
from .tables import PROMPT_COLUMNS, parse_json, value_of
from .texts import decode_text

CAPTION_ENDINGS = (".txt", ".caption", ".json")  # the first that is there


def captions_of(value) -> tuple[str, ...]:
    """A cell's captions: one text, or a list of them; none where it holds nothing."""
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(text.strip() for text in values if isinstance(text, str) and text.strip())


def captions_in(content: bytes, name: str) -> tuple[str, ...]:
    """The captions of a caption file. Raises: Unusable.

    .json: an object with text, prompt or caption, or these texts themselves.
    """
    text = decode_text(content, name)
    if not name.lower().endswith(".json"):
        return captions_of(text)
    found = parse_json(text, name)
    return captions_of(value_of(found, PROMPT_COLUMNS) if isinstance(found, dict) else found)


def captions_beside(picture: Path) -> tuple[str, ...]:
    """The captions of the file beside a picture, () where there is none. Raises: Unusable."""
    beside = next((path for path in map(picture.with_suffix, CAPTION_ENDINGS) if path.is_file()), None)
    if beside is None:
        return ()
    return captions_in(read_bytes(beside, LIMITS.text_bytes), beside.name)
