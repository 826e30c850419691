"""Captions beside pictures: .txt, .caption and .json of the same name, or the word in a folder's name."""

from pathlib import Path

from .tables import PROMPT_COLUMNS, read_json, value_of
from .texts import read_text

CAPTION_ENDINGS = (".txt", ".caption", ".json")  # the first that is there


def captions_of(value) -> tuple[str, ...]:
    """A cell's captions: one text, or a list of them; none where it holds nothing."""
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(text.strip() for text in values if isinstance(text, str) and text.strip())


def captions_beside(picture: Path) -> tuple[str, ...]:
    """The captions of the file beside a picture, () where there is none. Raises: BadFile.

    .json: an object with text, prompt or caption, or these texts themselves.
    """
    beside = next((path for path in map(picture.with_suffix, CAPTION_ENDINGS) if path.is_file()), None)
    if beside is None:
        return ()
    if beside.suffix != ".json":
        return captions_of(read_text(beside))
    found = read_json(beside)
    return captions_of(value_of(found, PROMPT_COLUMNS) if isinstance(found, dict) else found)
