"""Which pictures there are and what each was made from: model, prompt, seed, photos of the real thing."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..intake import (
    PICTURE_ENDINGS,
    PROMPT_COLUMNS,
    BadFile,
    Problem,
    captions_beside,
    inside,
    pictures_below,
    read_rows,
    value_of,
)

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


def samples_of(
    model: str, folder: Path, prompts: Sequence[str] | None, layout: str | None, first: int | None = None
) -> list[Sample]:
    """A folder's pictures with their prompts: from a prompt list, from metadata.jsonl or .csv, or from .txt files.

    With a list, the file's name holds the prompt's number: 00012.png, 00012_3.png (seed 3), 00012/3.png, or `layout`;
    first: the number of the list's first prompt, 0 where it is not given.
    """
    if prompts is not None:
        return listed_samples(model, folder, prompts, layout, first)
    for name in ("metadata.jsonl", "metadata.csv"):
        if (Path(folder) / name).is_file():
            return metadata_samples(model, Path(folder) / name)
    return captioned_samples(model, folder)


def listed_samples(
    model: str, folder: Path, prompts: Sequence[str], layout: str | None, first: int | None = None
) -> list[Sample]:
    found = [(path, int(fields["prompt"]), fields) for path, fields in matches(folder, [layout] if layout else LAYOUTS)]
    if first is None and min(number for _, number, _ in found) == 1:
        raise BadFile(
            f'The pictures in "{folder}" are numbered from 1, and a list counts from 0: say which number its first prompt has '
            "(--first-number 1, or 0 where the first prompt has no picture)."
        )
    samples, last = [], len(prompts) - 1 + (first or 0)
    for path, number, fields in found:
        if not (first or 0) <= number <= last:
            raise BadFile(f'"{path}" belongs to prompt {number}, but the list ends at {last}.')
        samples.append(Sample(model, path, prompts[number - (first or 0)], fields.get("seed", "0")))
    return samples


def matches(folder: Path, layouts: Sequence[str]) -> list[tuple[Path, dict]]:
    """The pictures whose paths fit one of the layouts, with the layout's fields. Raises where none does."""
    found = []
    patterns = [pattern_of(layout) for layout in layouts]
    for path in pictures_below(folder, PICTURE_ENDINGS):
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
    seeds, samples = {}, []
    for row in read_rows(path):
        values = {} if isinstance(row, Problem) else row.values
        prompt, name, seed = (value_of(values, names) for names in (PROMPT_COLUMNS, ("file_name",), ("seed",)))
        if not isinstance(name, str) or not isinstance(prompt, str):
            raise BadFile(f'"{path}", row {row.number}: a row needs file_name and text (or prompt, or caption).')
        if inside(path.parent, name) is None:
            raise BadFile(f'The table in "{path.parent}" points outside it: "{name}".')
        counted = seeds[prompt] = seeds.get(prompt, -1) + 1
        samples.append(Sample(model, path.parent / name, prompt, str(counted) if seed is None else str(seed)))
    return samples


def captioned_samples(model: str, folder: Path) -> list[Sample]:
    """Pictures with a .txt of the same name beside them; a prompt's pictures are its seeds, in order."""
    seeds, samples = {}, []
    for path in pictures_below(folder, PICTURE_ENDINGS):
        captions = captions_beside(path)
        if len(captions) != 1:
            raise BadFile(
                f'"{path}" has no prompt: give a prompt list, a metadata.jsonl in its folder, or {path.stem}.txt.'
            )
        seed = seeds[captions[0]] = seeds.get(captions[0], -1) + 1
        samples.append(Sample(model, path, captions[0], str(seed)))
    if not samples:
        raise BadFile(f'"{folder}" has no pictures.')
    return samples
