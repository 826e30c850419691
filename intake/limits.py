"""What a file may ask for at most, in one table."""

from dataclasses import dataclass

MB = 2**20


@dataclass
class Limits:
    """Bounds that hold before anything is decoded. `LIMITS` is the table in force; set its fields to change them."""

    picture_bytes: int = 256 * MB
    picture_pixels: int = 50_000_000  # decoded and laid on white that is some 450 MB
    text_bytes: int = 1 * MB  # a caption or a list of captions beside a picture
    table_bytes: int = 4096 * MB  # rows are streamed
    archive_bytes: int = 256 * 1024 * MB  # streamed, a member at a time
    weights_bytes: int = 256 * 1024 * MB  # mapped, not read whole
    json_bytes: int = 64 * MB  # read whole
    field_characters: int = 1_000_000  # of a table's cell; csv's own bound is 131,072
    overlap: int = 1  # how often a pickle may show the same numbers in one tensor
    repeats: int = 1000  # of a subfolder "10_name"


LIMITS = Limits()
