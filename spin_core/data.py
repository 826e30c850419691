"""Pictures with captions, from what people have on their disks: one sample model for every format, read as a stream.

Bad input is named, left out and counted; it never ends a run.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from ..intake import (
    PROMPT_COLUMNS,
    BadFile,
    Captioned,
    Problem,
    Report,
    Row,
    captioned_folder,
    captioned_table,
    captioned_tar,
    captions_of,
    inside,
    open_parquet,
    parquet_rows,
    pictures_below,
    read_prompts,
    read_rows,
    table_of,
)
from .samples import Picture, Sample

PICTURE_COLUMNS = ("image", "jpg", "png", "picture", "img")
THUMB_COLUMNS = ("label", "thumb", "liked")  # of pictures without a pair
THUMBS = {"true": 1.0, "up": 1.0, "liked": 1.0, "false": 0.0, "down": 0.0, "disliked": 0.0}  # numbers may be classes
SPLIT = re.compile(r"(train|test|validation|valid|val|dev)(?![a-z])")
PICK_A_PIC_COLUMNS = ["jpg_0", "jpg_1", "caption", "label_0", "label_1"]


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

    A folder with metadata.jsonl or metadata.csv (Hugging Face imagefolder; also in train/), with .tar archives
    (webdataset), with .parquet files, or with pictures and captions (kohya's "N_name" subfolders repeat theirs N times);
    a list of prompts (.txt, .tsv, .json); one .tar, .parquet or metadata file. Raises: BadFile, a ValueError, where there is nothing of this.
    """
    if not path.exists():
        raise BadFile(f'Choose another data set.\nThere is no "{path}".')
    if path.is_dir():
        return read_folder(path, report)
    readers = {
        ".jsonl": read_metadata,
        ".csv": read_metadata,
        ".parquet": read_parquet,
        ".tar": read_tar,
        ".txt": read_prompt_list,
        ".tsv": read_prompt_list,
        ".json": read_prompt_list,
    }
    if path.suffix.lower() not in readers:
        raise BadFile(
            f'Choose a folder, or a file of a data set.\n"{path.name}" is none: {", ".join(readers)} are read.'
        )
    return readers[path.suffix.lower()](path, report)


def read_folder(folder: Path, report: Report) -> Iterator[Sample]:
    if table := table_of(folder):
        return read_metadata(table, report)
    for ending, reader in ((".tar", read_tar), (".parquet", read_parquet)):  # img2dataset puts tables beside archives
        if files := pictures_below(folder, {ending}):
            files = for_training(files, folder, report)
            return (sample for file in files for sample in reader(file, report))
    return read_pictures(captioned_folder(folder, report))


def for_training(files: list[Path], folder: Path, report: Report) -> list[Path]:
    """Without the hub's test and validation splits, which are noted, where there is a training split."""
    splits = {file: split_of(file.relative_to(folder)) for file in files}
    others = [file for file, split in splits.items() if split not in ("", "train")]
    if not others or "train" not in splits.values():
        return files
    told = ", ".join(sorted({splits[file] for file in others}))
    report.note(f"{len(others)} files of other splits than train, left alone: {told}")
    return [file for file in files if file not in others]


def split_of(path: Path) -> str:
    """The hub's split by the name of the file or of its folder (train-00000-of-00002.parquet, test/0.parquet), or ""."""
    found = filter(None, (SPLIT.match(part.lower()) for part in path.parts))
    return next((match[0] for match in found), "")


def read_pictures(found: Iterator[Captioned]) -> Iterator[Sample]:
    """Pictures with captions as samples, each as often as its folder says (kohya), with its thumb where it has one."""
    for one in found:
        picture = Picture(one.name, one.picture)
        sample = Sample(one.captions[0], picture, None, thumb_of(one), one.meta, one.captions)
        for _ in range(one.repeats):
            yield sample


def thumb_of(one: Captioned) -> float | None:
    """1.0 or 0.0 by a column such as label (true or false), or by its folder's name (liked, disliked); None where neither says."""
    columns = {str(name).lower(): value for name, value in one.meta.items()}
    told = [columns[name] for name in THUMB_COLUMNS if name in columns] + list(Path(one.name).parts[-2:-1])
    return next((THUMBS[word] for word in (str(value).strip().lower() for value in told) if word in THUMBS), None)


def read_metadata(file: Path, report: Report) -> Iterator[Sample]:
    """Pictures with captions, or pairs where the columns are Pick-a-Pic's, as SPIN Vote writes them."""
    first = next((found for found in read_rows(file) if isinstance(found, Row)), None)
    if first and set(PICK_A_PIC_COLUMNS) <= first.values.keys():
        return read_pairs(file, report)
    return read_pictures(captioned_table(file, report))


def read_pairs(file: Path, report: Report) -> Iterator[Sample]:
    """Pairs whose pictures are files below the table's folder."""
    for found in read_rows(file):
        where = f"{file.name}, row {found.number}"
        if isinstance(found, Problem):
            report.leave_out(where, found.reason)
            continue
        row = [found.values.get(column) for column in PICK_A_PIC_COLUMNS]
        row[:2] = [inside(file.parent, name) if isinstance(name, str) else None for name in row[:2]]
        if sample := preference(row, where, report):
            yield sample


def read_tar(file: Path, report: Report) -> Iterator[Sample]:
    return read_pictures(captioned_tar(file, report))


def read_parquet(file: Path, report: Report) -> Iterator[Sample]:
    """Pick-a-Pic's pairs, tables of chosen and rejected pictures, or of pictures with captions, as the hub has them.

    Ties are left out; the preferred picture always comes first.
    """
    by_name = {column.lower(): column for column in open_parquet(file).schema_arrow.names}
    text = next((by_name[name] for name in PROMPT_COLUMNS if name in by_name), None)
    picture = next((by_name[name] for name in PICTURE_COLUMNS if name in by_name), None)
    if set(PICK_A_PIC_COLUMNS) <= by_name.keys():
        columns, sample_of = PICK_A_PIC_COLUMNS, preference
    elif text and {"chosen", "rejected"} <= by_name.keys():
        columns, sample_of = [text, by_name["chosen"], by_name["rejected"]], chosen_pair
    elif text and picture:
        thumbs = [by_name[name] for name in THUMB_COLUMNS if name in by_name][:1]
        columns, sample_of = [text, picture, *thumbs], captioned
    else:
        raise BadFile(
            f'Name the columns as the hub does.\n"{file.name}" has {", ".join(by_name)}: it needs '
            f"{', '.join(PICK_A_PIC_COLUMNS)} (Pick-a-Pic), or a text with chosen and rejected, or a text with a picture "
            f"({', '.join(PICTURE_COLUMNS)})."
        )
    for found in parquet_rows(file, columns):
        where = f"{file.name}, row {found.number}"
        if isinstance(found, Problem):
            report.leave_out(where, found.reason)
        elif sample := sample_of([found.values[column] for column in columns], where, report):
            yield sample


def preference(row: list, where: str, report: Report) -> Sample | None:
    """One row of Pick-a-Pic as winner and loser."""
    first, second, caption, *labels = row
    labels = [label_of(label) for label in labels]
    if None in labels:
        report.leave_out(where, "no label")
    elif labels[0] == labels[1]:
        report.leave_out(where, "tie")
    elif labels[0] > labels[1]:
        return chosen_pair([caption, first, second], where, report, ("jpg_0", "jpg_1"))
    else:
        return chosen_pair([caption, second, first], where, report, ("jpg_1", "jpg_0"))
    return None


def chosen_pair(row: list, where: str, report: Report, names=("chosen", "rejected")) -> Sample | None:
    captions, pictures = captions_of(row[0]), [content_of(value) for value in row[1:]]
    if not captions:
        report.leave_out(where, "no caption")
    elif None in pictures:
        report.leave_out(where, "a picture of the pair is missing")
    else:
        winner, loser = (Picture(f"{where}, {n}", content) for n, content in zip(names, pictures, strict=True))
        return Sample(captions[0], winner, loser, 1.0, captions=captions)
    return None


def captioned(row: list, where: str, report: Report) -> Sample | None:
    captions, content = captions_of(row[0]), content_of(row[1])
    label = THUMBS.get(str(row[2]).strip().lower()) if len(row) > 2 else None
    if not captions or content is None:
        report.leave_out(where, "no picture" if captions else "no caption")
        return None
    return Sample(captions[0], Picture(where, content), label=label, captions=captions)


def label_of(value) -> float | None:
    """A number that can win or lose, in a .csv written as text; None for what is none: missing, NaN, words."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def content_of(value) -> Path | bytes | None:
    """A table's picture: its file, or its bytes, also where datasets keeps it as {"bytes", "path"}; None where there are none."""
    if isinstance(value, Path):
        return value if value.is_file() else None
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
