"""Pictures with captions, from what people have on their disks: one sample model for every format, read as a stream.

Bad input is named, left out and counted; it never ends a run.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from ..intake import (
    CAPTION_ENDINGS,
    LIMITS,
    PICTURE_ENDINGS,
    PROMPT_COLUMNS,
    BadFile,
    Problem,
    captions_beside,
    captions_of,
    files_below,
    inside,
    leads_out,
    open_parquet,
    parquet_rows,
    pictures_below,
    read_prompts,
    read_rows,
    value_of,
)
from .samples import Picture, Report, Sample

PICTURE_COLUMNS = ("image", "jpg", "png", "picture", "img")
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
    """Pictures with a .txt, .caption or .json of the same name beside them. A subfolder "10_cat" is read ten times (kohya).

    Without a file, the words of such a subfolder's name are the caption.
    """
    files = list(files_below(folder))
    pictures = sorted(file for file in files if file.suffix.lower() in PICTURE_ENDINGS)
    if not pictures:
        raise BadFile(f'"{folder}" holds no picture ({", ".join(sorted(PICTURE_ENDINGS))}) and no metadata file')
    note_others(files, report)
    for file in pictures:
        name = file.relative_to(folder).as_posix()
        if leads_out(file, folder):
            report.leave_out(name, "a link that leads out of the folder")
            continue
        repeats, word = kohya_folder(file, folder, report)
        try:
            captions = captions_beside(file) or captions_of(word)
        except BadFile as error:
            report.leave_out(name, str(error))
            continue
        if not captions:
            report.leave_out(name, "no caption (a .txt of the same name)")
            continue
        for _ in range(repeats):
            yield Sample(captions[0], Picture(name, file), captions=captions)


def note_others(files: list[Path], report: Report) -> None:
    """What lies in the folder and is neither picture nor caption, by its ending."""
    endings = Counter(file.suffix.lower() or "no ending" for file in files)
    others = {e: n for e, n in endings.items() if e not in PICTURE_ENDINGS and e not in CAPTION_ENDINGS}
    if others:
        report.note("other files, left alone: " + ", ".join(f"{n} {ending}" for ending, n in sorted(others.items())))


def kohya_folder(file: Path, folder: Path, report: Report) -> tuple[int, str]:
    """(N, name) of the nearest parent folder "N_name", else (1, ""). A number beyond the bound, as of a date, is noted."""
    for part in reversed(file.relative_to(folder).parts[:-1]):
        found = re.match(r"(\d+)_(.*)", part)
        if found and int(found[1]) <= LIMITS.repeats:
            return int(found[1]), found[2]
        if found:
            report.note(f'"{part}" is read once: {found[1]} is no number of repeats (at most {LIMITS.repeats})')
            return 1, ""
    return 1, ""


def read_metadata(file: Path, report: Report) -> Iterator[Sample]:
    """file_name and text (or prompt, or caption) of every row of a table; other columns go to meta."""
    for found in read_rows(file):
        if isinstance(found, Problem):
            report.leave_out(f"{file.name}, row {found.number}", found.reason)
            continue
        name, captions = str(found.values.get("file_name") or ""), captions_of(value_of(found.values, PROMPT_COLUMNS))
        where = f"{file.name}, row {found.number}" + (f" ({name})" if name else "")
        picture = inside(file.parent, name) if name else None
        if not name:
            report.leave_out(where, "no file_name")
        elif picture is None:
            report.leave_out(where, "file_name leads out of the folder")
        elif not picture.is_file():
            report.leave_out(where, "its picture is missing")
        elif not captions:
            report.leave_out(where, "no text")
        else:
            rest = {k: v for k, v in found.values.items() if k != "file_name" and str(k).lower() not in PROMPT_COLUMNS}
            yield Sample(captions[0], Picture(name, picture), meta=rest, captions=captions)


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
        columns, sample_of = [text, picture], captioned
    else:
        raise BadFile(
            f'"{file.name}" has the columns {", ".join(by_name)}: it needs {", ".join(PICK_A_PIC_COLUMNS)} (Pick-a-Pic), or '
            f"a text with chosen and rejected, or a text with a picture ({', '.join(PICTURE_COLUMNS)})"
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
    if not captions or content is None:
        report.leave_out(where, "no picture" if captions else "no caption")
        return None
    return Sample(captions[0], Picture(where, content), captions=captions)


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
