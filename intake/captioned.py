"""Pictures with their captions as folders, tables and archives have them: one listing for trainers and scorers."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .captions import CAPTION_ENDINGS, captions_beside, captions_of
from .files import BadFile, Unusable, files_below, inside, leads_out
from .limits import LIMITS
from .pictures import PICTURE_ENDINGS
from .report import Report
from .tables import PROMPT_COLUMNS, Problem, read_rows, value_of
from .workflows import prompt_of_picture

NO_CAPTION = "no caption (a .txt of the same name)"
LEADS_OUT = "a link that leads out of the folder"


@dataclass(frozen=True)
class Captioned:
    """A picture that is not read yet, with its captions. name: what a report calls it. repeats: kohya's. meta: other columns."""

    name: str
    picture: Path | bytes
    captions: tuple[str, ...]
    repeats: int = 1
    meta: dict = field(default_factory=dict)


def table_of(folder: Path) -> Path | None:
    """The folder's metadata.jsonl or metadata.csv (Hugging Face imagefolder), its own or in train/."""
    tables = (folder / place / f"metadata.{ending}" for place in ("", "train") for ending in ("jsonl", "csv"))
    return next((table for table in tables if table.is_file()), None)


def captioned_table(file: Path, report: Report) -> Iterator[Captioned]:
    """file_name and text (or prompt, or caption) of every row of a table; other columns go to meta."""
    for found in read_rows(file):
        if isinstance(found, Problem):
            report.leave_out(f"{file.name}, row {found.number}", found.reason)
            continue
        name, captions = str(found.values.get("file_name") or ""), captions_of(value_of(found.values, PROMPT_COLUMNS))
        where = f"{file.name}, row {found.number}" + (f" ({name})" if name else "")
        found_at = inside(file.parent, name) if name else None
        if not name:
            report.leave_out(where, "no file_name")
        elif found_at is None:
            report.leave_out(where, "file_name leads out of the folder")
        elif not found_at.is_file():
            report.leave_out(where, "its picture is missing")
        elif not captions:
            report.leave_out(where, "no text")
        else:
            rest = {k: v for k, v in found.values.items() if k != "file_name" and str(k).lower() not in PROMPT_COLUMNS}
            yield Captioned(name, file.parent / name, captions, meta=rest)


def captioned_folder(folder: Path, report: Report) -> Iterator[Captioned]:
    """Pictures with a .txt, .caption or .json of the same name beside them. A subfolder "10_cat" repeats its ten times (kohya).

    Without a file, the prompt that a ComfyUI picture was made from is its caption, or else the words of such a
    subfolder's name. Raises: BadFile where there is no picture.
    """
    files = list(files_below(folder))
    pictures = sorted(file for file in files if file.suffix.lower() in PICTURE_ENDINGS)
    if not pictures:
        raise BadFile(
            "Put captioned pictures into the folder.\n"
            f'"{folder}" holds no picture ({", ".join(sorted(PICTURE_ENDINGS))}) and no metadata file.'
        )
    note_others(files, report)
    for file in pictures:
        name = file.relative_to(folder).as_posix()
        if leads_out(file, folder):
            report.leave_out(name, LEADS_OUT)
            continue
        repeats, word = kohya_folder(file, folder, report)
        try:
            captions = captions_beside(file)
        except Unusable as error:
            report.leave_out(name, f"its caption {error.reason}")
            continue
        try:
            captions = captions or captions_of(prompt_of_picture(file)) or captions_of(word)
        except Unusable as error:
            report.leave_out(name, f"{error.reason} (write the one that counts into a .txt of the same name)")
            continue
        if captions:
            yield Captioned(name, file, captions, repeats)
        else:
            report.leave_out(name, NO_CAPTION)


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
        if found and 1 <= int(found[1]) <= LIMITS.repeats:
            return int(found[1]), found[2]
        if found:
            report.note(f'"{part}" is read once: {found[1]} is no number of repeats (1 to {LIMITS.repeats})')
            return 1, ""
    return 1, ""
