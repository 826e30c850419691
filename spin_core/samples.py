"""What is trained on: a picture that is read when it is needed, its captions, its pair."""

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from ..intake import LIMITS, Unusable, open_picture, read_bytes, unusable
from ..train_core import keyed_generator


@dataclass(frozen=True)
class Picture:
    """A picture that is not read until it is needed. `name` is what a report calls it."""

    name: str
    source: Path | bytes

    def content(self) -> bytes:
        """Raises: Unusable, a ValueError, which names it."""
        if isinstance(self.source, bytes):
            return self.source
        try:
            return read_bytes(self.source, LIMITS.picture_bytes)
        except Unusable as error:
            raise unusable(self.name, error.reason) from error

    def hash(self) -> str:
        return hashlib.sha256(self.content()).hexdigest()

    def open(self) -> Image.Image:
        """The picture upright and in RGB, transparency on white. BadFile, a ValueError, names it where it does not decode."""
        return open_picture(self.source, self.name)


@dataclass(frozen=True)
class Sample:
    """What is trained on: a caption, its picture (None in a prompt list), and for preference pairs the rejected one.

    label: 1.0 where `image` is preferred to `image_b`; of a picture without a pair its thumb, 1.0 up and 0.0 down; None without
    either. captions: all of them, where the data has
    several; `caption` draws one.
    """

    prompt: str
    image: Picture | None = None
    image_b: Picture | None = None
    label: float | None = None
    meta: dict = field(default_factory=dict)
    captions: tuple[str, ...] = ()

    def caption(self, seed: int, number: int) -> str:
        """The caption of this sample, the number-th of its data set, in a run of that seed."""
        if len(self.captions) < 2:
            return self.prompt
        drawn = torch.randint(len(self.captions), (1,), generator=keyed_generator(seed, "caption", number))
        return self.captions[int(drawn)]


def png_of(image: Image.Image) -> bytes:
    """A picture in memory as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
