"""Pictures with captions, from what people have on their disks: one sample model for every format, read as a stream.

Bad input is named, left out and counted; it never ends a run.
"""

import hashlib
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageOps

from ..intake import (
    LIMITS,
    PICTURE_ENDINGS,
    PROMPT_COLUMNS,
    BadFile,
    Problem,
    caption_beside,
    inside,
    open_picture,
    pictures_below,
    read_bytes,
    read_prompts,
    read_rows,
    value_of,
)

PICK_A_PIC_COLUMNS = ["jpg_0", "jpg_1", "caption", "label_0", "label_1"]
NAMED_AT_MOST = 20


@dataclass(frozen=True)
class Picture:
    """A picture that is not read until it is needed. `name` is what a report calls it."""

    name: str
    source: Path | bytes

    def content(self) -> bytes:
        return self.source if isinstance(self.source, bytes) else read_bytes(self.source, LIMITS.picture_bytes)

    def hash(self) -> str:
        return hashlib.sha256(self.content()).hexdigest()

    def open(self) -> Image.Image:
        """The picture upright and in RGB, transparency on white. BadFile, a ValueError, names it where it does not decode."""
        return open_picture(self.source, self.name)


@dataclass(frozen=True)
class Sample:
    """What is trained on: a caption, its picture (None in a prompt list), and for preference pairs the rejected one.

    label: 1.0 where `image` is preferred to `image_b`; None without a pair.
    """

    prompt: str
    image: Picture | None = None
    image_b: Picture | None = None
    label: float | None = None
    meta: dict = field(default_factory=dict)


@dataclass
class Report:
    """What was found, and what was left out and why. Only the first names of each reason are kept."""

    kept: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, sentence: str) -> None:
        """Something that a person should know and that leaves nothing out; said once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def leave_out(self, name: str, reason: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        names = self.left_out.setdefault(reason, [])
        if len(names) < NAMED_AT_MOST:
            names.append(name)

    def text(self) -> str:
        lines = [f"{self.kept} samples"]
        for reason, count in self.counts.items():
            names = self.left_out[reason]
            more = f" and {count - len(names)} more" if count > len(names) else ""
            lines.append(f"left out, {reason}: {count} ({', '.join(names)}{more})")
        return "\n".join([*lines, *self.notes])


@dataclass(frozen=True)
class Dataset:
    """A stream of samples that can be read again and again. path: a folder or a file, see `read`."""

    path: Path

    def samples(self, report: Report | None = None) -> Iterator[Sample]:
        """All usable samples, in the same order every time."""
        report = Report() if report is None else report
        for sample in read(Path(self.path), report):
            report.kept += 1
            yield sample


@dataclass(frozen=True)
class Listed:
    """A data set that is already in memory: pictures of the graph with their captions."""

    listed: tuple[Sample, ...]

    def samples(self, report: Report | None = None) -> Iterator[Sample]:
        if report is not None:
            report.kept += len(self.listed)
        yield from self.listed


def read(path: Path, report: Report) -> Iterator[Sample]:
    """Samples of a folder or a file, told by what is there.

    A folder with metadata.jsonl or metadata.csv (Hugging Face imagefolder; also in train/), with .parquet files, or with
    pictures and captions (kohya's "N_name" subfolders repeat theirs N times); a list of prompts (.txt, .tsv, .json); one
    .parquet or metadata file. Raises: BadFile, a ValueError, where there is nothing of this.
    """
    if not path.exists():
        raise BadFile(f'there is no "{path}"')
    if path.is_dir():
        return read_folder(path, report)
    readers = {
        ".jsonl": read_metadata,
        ".csv": read_metadata,
        ".parquet": read_parquet,
        ".txt": read_prompt_list,
        ".tsv": read_prompt_list,
        ".json": read_prompt_list,
    }
    if path.suffix.lower() not in readers:
        raise BadFile(f'"{path.name}" is no data set: give a folder, or a {", ".join(readers)} file')
    return readers[path.suffix.lower()](path, report)


def read_folder(folder: Path, report: Report) -> Iterator[Sample]:
    tables = [folder / place / f"metadata.{ending}" for place in ("", "train") for ending in ("jsonl", "csv")]
    for table in tables:
        if table.exists():
            return read_metadata(table, report)
    if parquets := pictures_below(folder, {".parquet"}):
        return (sample for parquet in parquets for sample in read_parquet(parquet, report))
    return read_captioned_pictures(folder, report)


def read_captioned_pictures(folder: Path, report: Report) -> Iterator[Sample]:
    """Pictures with a .txt or .caption of the same name beside them. A subfolder "10_cat" is read ten times (kohya)."""
    pictures = pictures_below(folder, PICTURE_ENDINGS)
    if not pictures:
        raise BadFile(f'"{folder}" holds no picture ({", ".join(sorted(PICTURE_ENDINGS))}) and no metadata file')
    for file in pictures:
        name = file.relative_to(folder).as_posix()
        try:
            caption = caption_beside(file)
        except BadFile as error:
            report.leave_out(name, str(error))
            continue
        if not caption:
            report.leave_out(name, "no caption (a .txt of the same name)")
            continue
        for _ in range(repeats_of(file, folder, report)):
            yield Sample(caption, Picture(name, file))


def repeats_of(file: Path, folder: Path, report: Report) -> int:
    """N of the nearest parent folder "N_name", else 1. A number beyond the bound is a name, such as a date, and is noted."""
    for part in reversed(file.relative_to(folder).parts[:-1]):
        found = re.match(r"(\d+)_", part)
        if found and int(found[1]) <= LIMITS.repeats:
            return int(found[1])
        if found:
            report.note(f'"{part}" is read once: {found[1]} is no number of repeats (at most {LIMITS.repeats})')
            return 1
    return 1


def read_metadata(file: Path, report: Report) -> Iterator[Sample]:
    """file_name and text (or prompt, or caption) of every row of a table; other columns go to meta."""
    for found in read_rows(file):
        if isinstance(found, Problem):
            report.leave_out(f"{file.name}, row {found.number}", found.reason)
            continue
        name, caption = str(found.values.get("file_name") or ""), value_of(found.values, PROMPT_COLUMNS)
        where = f"{file.name}, row {found.number}" + (f" ({name})" if name else "")
        picture = inside(file.parent, name) if name else None
        if not name:
            report.leave_out(where, "no file_name")
        elif picture is None:
            report.leave_out(where, "file_name leads out of the folder")
        elif not picture.is_file():
            report.leave_out(where, "its picture is missing")
        elif not isinstance(caption, str):
            report.leave_out(where, "no text")
        else:
            rest = {k: v for k, v in found.values.items() if k != "file_name" and str(k).lower() not in PROMPT_COLUMNS}
            yield Sample(caption, Picture(name, picture), meta=rest)


def read_parquet(file: Path, report: Report) -> Iterator[Sample]:
    """Pick-a-Pic's pairs, a batch of rows at a time. Ties are left out; the preferred picture always comes first."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f'"{file.name}" needs pyarrow to be read: pip install pyarrow') from error
    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f'"{file.name}" is no parquet file ({error})') from error
    missing = [column for column in PICK_A_PIC_COLUMNS if column not in table.schema_arrow.names]
    if missing:
        raise ValueError(f'"{file.name}" lacks the columns {", ".join(missing)} of Pick-a-Pic')
    number = 0
    for batch in table.iter_batches(batch_size=64, columns=PICK_A_PIC_COLUMNS):
        for row in batch.to_pylist():
            number += 1
            sample = preference(row, f"{file.name}, row {number}", report)
            if sample is not None:
                yield sample


def preference(row: dict, where: str, report: Report) -> Sample | None:
    """One row of Pick-a-Pic as winner and loser."""
    labels = [label_of(row["label_0"]), label_of(row["label_1"])]
    pictures = [content_of(row["jpg_0"]), content_of(row["jpg_1"])]
    if None in labels:
        report.leave_out(where, "no label")
    elif labels[0] == labels[1]:
        report.leave_out(where, "tie")
    elif not isinstance(row["caption"], str) or not row["caption"].strip():
        report.leave_out(where, "no caption")
    elif None in pictures:
        report.leave_out(where, "a picture of the pair is missing")
    else:
        first, second = Picture(f"{where}, jpg_0", pictures[0]), Picture(f"{where}, jpg_1", pictures[1])
        winner, loser = (first, second) if labels[0] > labels[1] else (second, first)
        return Sample(row["caption"].strip(), winner, loser, 1.0)
    return None


def label_of(value) -> float | None:
    """A number that can win or lose; None for what is none: missing, NaN, text."""
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if is_number else None


def content_of(value) -> bytes | None:
    """The bytes of a table's picture, also where datasets keeps it as {"bytes", "path"}; None where there are none."""
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if isinstance(value, bytes) and value else None


def read_prompt_list(file: Path, report: Report) -> Iterator[Sample]:
    """Prompts without pictures: see intake.read_prompts."""
    for found in read_prompts(file):
        if isinstance(found, Problem):
            report.leave_out(f"{file.name}, row {found.number}", found.reason)
        else:
            yield Sample(found.values["prompt"], meta={k: v for k, v in found.values.items() if k != "prompt"})


def bucket(size: tuple[int, int], resolution: int, multiple: int) -> tuple[int, int]:
    """The training size of a picture of that size: its aspect ratio, resolution² pixels at most, both sides multiples.

    Ratios are held to 1:2 … 2:1, as the models have seen little else. size: (width, height).
    """
    ratio = min(max(size[0] / size[1], 0.5), 2.0)
    area = resolution * resolution
    widths = range(multiple, 2 * resolution + 1, multiple)
    sizes = [(width, area // width // multiple * multiple) for width in widths]
    return min((s for s in sizes if s[1] > 0), key=lambda s: (abs(math.log(s[0] / s[1] / ratio)), -s[0] * s[1]))


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scaled to cover the size, the overhang cropped evenly. size: (width, height)."""
    return ImageOps.fit(image, size, Image.Resampling.BICUBIC)


def png_of(image: Image.Image) -> bytes:
    """A picture in memory as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
