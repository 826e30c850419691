"""Which pictures there are and what each was made from: model, prompt, seed, photos of the real thing."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .prompts import COLUMNS

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
LAYOUTS = ("{prompt}_{seed}", "{prompt}-{seed}", "{prompt}/{seed}", "{prompt}")
FIELDS = {"prompt": r"(?P<prompt>\d+)", "seed": r"(?P<seed>[^/]+)", "concept": r"(?P<concept>[^/]+)"}


class Sample(NamedTuple):
    """A generated picture. references: photos that similarity scores compare it with. concept: whose photos, if any."""

    model: str
    picture: Path
    prompt: str
    seed: str
    references: tuple[Path, ...] = ()
    concept: str = ""


def pictures_in(folder: Path) -> list[Path]:
    """Every picture file below the folder, in order of its path."""
    if not Path(folder).is_dir():
        raise ValueError(f'There is no folder "{folder}".')
    return sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)


def samples_of(model: str, folder: Path, prompts: Sequence[str] | None, layout: str | None) -> list[Sample]:
    """A folder's pictures with their prompts: from a prompt list, from metadata.jsonl or .csv, or from .txt files.

    With a list, the file's name holds the prompt's number: 00012.png, 00012_3.png (seed 3), 00012/3.png, or `layout`.
    """
    if prompts is not None:
        return listed_samples(model, folder, prompts, layout)
    for name in ("metadata.jsonl", "metadata.csv"):
        if (Path(folder) / name).is_file():
            return metadata_samples(model, Path(folder) / name)
    return captioned_samples(model, folder)


def listed_samples(model: str, folder: Path, prompts: Sequence[str], layout: str | None) -> list[Sample]:
    layouts = [layout] if layout else LAYOUTS
    samples = []
    for path, found in matches(folder, layouts):
        number = int(found["prompt"])
        if number >= len(prompts):
            raise ValueError(f'"{path}" belongs to prompt {number}, but the list ends at {len(prompts) - 1}.')
        samples.append(Sample(model, path, prompts[number], found.get("seed", "0")))
    return samples


def matches(folder: Path, layouts: Sequence[str]) -> list[tuple[Path, dict]]:
    """The pictures whose paths fit one of the layouts, with the layout's fields. Raises where none does."""
    found = []
    patterns = [pattern_of(layout) for layout in layouts]
    for path in pictures_in(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        fit = next(filter(None, (pattern.fullmatch(name) for pattern in patterns)), None)
        if fit:
            found.append((path, fit.groupdict()))
    if not found:
        raise ValueError(f'"{folder}" has no pictures named as {" or ".join(layouts)} (such as 00012_3.png).')
    return found


def pattern_of(layout: str) -> re.Pattern:
    """A layout such as {concept}/prompt_{prompt}/{seed} as a pattern of paths without their suffix."""
    unknown = set(re.findall(r"{(.*?)}", layout)) - set(FIELDS)
    if unknown or "{prompt}" not in layout:
        raise ValueError(f'The layout "{layout}" must hold {{prompt}}, and may hold {{seed}} and {{concept}}.')
    parts = re.split(r"{(.*?)}", layout)
    return re.compile("".join(FIELDS[part] if i % 2 else re.escape(part) for i, part in enumerate(parts)))


def metadata_samples(model: str, path: Path) -> list[Sample]:
    """An imagefolder's table: file_name, and text, prompt or caption; seed where it is there."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = (
            [json.loads(line) for line in file if line.strip()]
            if path.suffix == ".jsonl"
            else list(csv.DictReader(file))
        )
    seeds, samples = {}, []
    for number, row in enumerate(rows, start=1):
        prompt = next((row[name] for name in COLUMNS if row.get(name)), None)
        if not row.get("file_name") or not prompt:
            raise ValueError(f'"{path}", row {number}: a row needs file_name and text (or prompt, or caption).')
        seed = seeds[prompt] = seeds.get(prompt, -1) + 1
        samples.append(Sample(model, inside(path.parent, row["file_name"]), prompt, str(row.get("seed") or seed)))
    return samples


def inside(folder: Path, name: str) -> Path:
    """A file of the folder; a table that points elsewhere is refused."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f'The table in "{folder}" points outside it: "{name}".')
    return path


def captioned_samples(model: str, folder: Path) -> list[Sample]:
    """Pictures with a .txt of the same name beside them; a prompt's pictures are its seeds, in order."""
    seeds, samples = {}, []
    for path in pictures_in(folder):
        caption = path.with_suffix(".txt")
        if not caption.is_file():
            raise ValueError(
                f'"{path}" has no prompt: give a prompt list, a metadata.jsonl in its folder, or {caption.name}.'
            )
        prompt = caption.read_text(encoding="utf-8").strip()
        seed = seeds[prompt] = seeds.get(prompt, -1) + 1
        samples.append(Sample(model, path, prompt, str(seed)))
    if not samples:
        raise ValueError(f'"{folder}" has no pictures.')
    return samples
