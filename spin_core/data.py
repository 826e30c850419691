"""Pictures with captions, from what people have on their disks: one sample model for every format, read as a stream.

Bad input is named, left out and counted; it never ends a run.
"""

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

PICTURE_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
PICK_A_PIC_COLUMNS = ["jpg_0", "jpg_1", "caption", "label_0", "label_1"]
NAMED_AT_MOST = 20


@dataclass(frozen=True)
class Picture:
    """A picture that is not read until it is needed. `name` is what a report calls it."""

    name: str
    source: Path | bytes

    def content(self) -> bytes:
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()

    def hash(self) -> str:
        return hashlib.sha256(self.content()).hexdigest()

    def open(self) -> Image.Image:
        """The picture upright and in RGB, transparency on white.

        Raises: ValueError naming it where it does not decode.
        """
        try:
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(self.content())))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
            return image.convert("RGB")
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f'picture "{self.name}" does not decode ({error})') from error


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
        return "\n".join(lines)


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

    A folder with metadata.jsonl or metadata.csv (Hugging Face imagefolder), with .parquet files (Pick-a-Pic),
    or with pictures and .txt captions (kohya's "N_name" subfolders repeat theirs N times); a .txt, .tsv or
    .json list of prompts; one .parquet or metadata file. Raises: ValueError where there is nothing of this.
    """
    if not path.exists():
        raise ValueError(f'there is no "{path}"')
    if path.is_dir():
        return read_folder(path, report)
    readers = {
        ".jsonl": read_metadata,
        ".csv": read_metadata,
        ".parquet": read_parquet,
        ".txt": read_prompt_lines,
        ".tsv": read_prompt_table,
        ".json": read_prompt_json,
    }
    if path.suffix.lower() not in readers:
        raise ValueError(f'"{path.name}" is no data set: give a folder, or a {", ".join(readers)} file')
    return readers[path.suffix.lower()](path, report)


def read_folder(folder: Path, report: Report) -> Iterator[Sample]:
    for name in ("metadata.jsonl", "metadata.csv"):
        if (folder / name).exists():
            return read_metadata(folder / name, report)
    tables = sorted(folder.rglob("*.parquet"))
    if tables:
        return (sample for table in tables for sample in read_parquet(table, report))
    return read_captioned_pictures(folder, report)


def read_captioned_pictures(folder: Path, report: Report) -> Iterator[Sample]:
    """Pictures with a .txt of the same name beside them. A subfolder "10_cat" is read ten times (kohya)."""
    pictures = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURE_ENDINGS)
    if not pictures:
        raise ValueError(f'"{folder}" holds no picture ({", ".join(sorted(PICTURE_ENDINGS))}) and no metadata file')
    for file in pictures:
        name = file.relative_to(folder).as_posix()
        caption = caption_beside(file)
        if not caption:
            report.leave_out(name, "no caption (a .txt of the same name)")
            continue
        for _ in range(repeats_of(file, folder)):
            yield Sample(caption, Picture(name, file))


def caption_beside(file: Path) -> str:
    text = file.with_suffix(".txt")
    return text.read_text(encoding="utf-8", errors="replace").strip() if text.exists() else ""


def repeats_of(file: Path, folder: Path) -> int:
    """N of the nearest parent folder "N_name", else 1."""
    for part in reversed(file.relative_to(folder).parts[:-1]):
        if found := re.match(r"(\d+)_", part):
            return int(found[1])
    return 1


def read_metadata(file: Path, report: Report) -> Iterator[Sample]:
    """file_name and text of every row of metadata.jsonl or metadata.csv; other columns go to meta."""
    for number, row in numbered_rows(file, report):
        name, caption = str(row.get("file_name") or ""), str(row.get("text") or "").strip()
        where = f"{file.name}, row {number}" + (f" ({name})" if name else "")
        picture = (file.parent / name).resolve()
        if not name:
            report.leave_out(where, "no file_name")
        elif not picture.is_relative_to(file.parent.resolve()):
            report.leave_out(where, "file_name leads out of the folder")
        elif not picture.is_file():
            report.leave_out(where, "its picture is missing")
        elif not caption:
            report.leave_out(where, "no text")
        else:
            yield Sample(
                caption, Picture(name, picture), meta={k: v for k, v in row.items() if k not in ("file_name", "text")}
            )


def numbered_rows(file: Path, report: Report) -> Iterator[tuple[int, dict]]:
    with open(file, encoding="utf-8", newline="") as lines:
        if file.suffix == ".csv":
            yield from enumerate(csv.DictReader(lines), start=1)
            return
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            if isinstance(row, dict):
                yield number, row
            else:
                report.leave_out(f"{file.name}, row {number}", "no JSON object")


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
    if row["label_0"] is None or row["label_0"] == row["label_1"]:
        report.leave_out(where, "tie")
    elif not (row["caption"] or "").strip():
        report.leave_out(where, "no caption")
    elif not row["jpg_0"] or not row["jpg_1"]:
        report.leave_out(where, "a picture of the pair is missing")
    else:
        first, second = Picture(f"{where}, jpg_0", row["jpg_0"]), Picture(f"{where}, jpg_1", row["jpg_1"])
        winner, loser = (first, second) if row["label_0"] > row["label_1"] else (second, first)
        return Sample(row["caption"].strip(), winner, loser, 1.0)
    return None


def read_prompt_lines(file: Path, report: Report) -> Iterator[Sample]:
    """One prompt a line."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.strip():
            yield Sample(line.strip())


def read_prompt_table(file: Path, report: Report) -> Iterator[Sample]:
    """PartiPrompts.tsv: a column "Prompt", quotes as they stand."""
    with open(file, encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        column = next((name for name in rows.fieldnames or [] if name.lower() in ("prompt", "caption", "text")), None)
        if column is None:
            raise ValueError(f'"{file.name}" has no column Prompt (it has {", ".join(rows.fieldnames or ["nothing"])})')
        for number, row in enumerate(rows, start=1):
            prompt = (row.pop(column) or "").strip()
            if prompt:
                yield Sample(prompt, meta=row)
            else:
                report.leave_out(f"{file.name}, row {number}", "no prompt")


def read_prompt_json(file: Path, report: Report) -> Iterator[Sample]:
    """HPD's lists: prompts, or objects with a "prompt"."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f'"{file.name}" is no JSON ({error})') from error
    if not isinstance(entries, list):
        raise ValueError(f'"{file.name}" is no list of prompts')
    for number, entry in enumerate(entries, start=1):
        prompt = entry.get("prompt") if isinstance(entry, dict) else entry
        if isinstance(prompt, str) and prompt.strip():
            yield Sample(prompt.strip())
        else:
            report.leave_out(f"{file.name}, entry {number}", "no prompt")


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
