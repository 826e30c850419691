"""Which pictures there are and what each was made from: model, prompt, seed, photos of the real thing."""

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..intake import (
    PICTURE_ENDINGS,
    BadFile,
    Captioned,
    Report,
    captioned_folder,
    captioned_table,
    files_below,
    leads_out,
    table_of,
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
    model: str,
    folder: Path,
    prompts: Sequence[str] | None,
    layout: str | None,
    first: int | None = None,
    report: Report | None = None,
) -> list[Sample]:
    """A folder's pictures with their prompts: from a prompt list, from metadata.jsonl or .csv, or from beside or in the pictures.

    With a list, the file's name holds the prompt's number: 00012.png, 00012_3.png (seed 3), 00012/3.png, or `layout`;
    first: the number of the list's first prompt, 0 where it is not given. report: what is left out and why.
    Raises: BadFile where nothing is left.
    """
    folder, report = Path(folder), Report() if report is None else report
    if not folder.is_dir():
        raise BadFile(f'There is no folder "{folder}".')
    if prompts is not None:
        samples = listed_samples(model, folder, prompts, layout, first, report)
    elif table := table_of(folder):
        samples = captioned_samples(model, captioned_table(table, report))
    else:
        samples = captioned_samples(model, captioned_folder(folder, report))
    report.kept += len(samples)
    if not samples:
        raise BadFile(f'"{folder}" has no picture that can be scored:\n{report.text()}')
    return samples


def listed_samples(
    model: str, folder: Path, prompts: Sequence[str], layout: str | None, first: int | None, report: Report
) -> list[Sample]:
    layouts = [layout] if layout else LAYOUTS
    found = [(path, int(fields["prompt"]), fields) for path, fields in matches(folder, layouts, report)]
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


def matches(folder: Path, layouts: Sequence[str], report: Report) -> list[tuple[Path, dict]]:
    """The pictures whose paths fit one of the layouts, with the layout's fields. Raises: BadFile where none does."""
    found = []
    patterns = [pattern_of(layout) for layout in layouts]
    for path in sorted(path for path in files_below(folder) if path.suffix.lower() in PICTURE_ENDINGS):
        name = path.relative_to(folder)
        fit = next(filter(None, (pattern.fullmatch(name.with_suffix("").as_posix()) for pattern in patterns)), None)
        if leads_out(path, folder):
            report.leave_out(name.as_posix(), "a link that leads out of the folder")
        elif fit:
            found.append((path, fit.groupdict()))
        else:
            report.leave_out(name.as_posix(), f"not named as {' or '.join(layouts)}")
    if not found:
        raise BadFile(f'"{folder}" has no pictures named as {" or ".join(layouts)} (such as 00012_3.png).')
    return found


def pattern_of(layout: str) -> re.Pattern:
    """A layout such as {concept}/prompt_{prompt}/{seed} as a pattern of paths without their suffix."""
    named = re.findall(r"{(.*?)}", layout)
    if "prompt" not in named or len(set(named)) < len(named) or not set(named) <= set(FIELDS):
        raise ValueError(
            f'The layout "{layout}" must hold {{prompt}}, and may hold {{seed}} and {{concept}}, each once.'
        )
    parts = re.split(r"{(.*?)}", layout)
    return re.compile("".join(FIELDS[part] if i % 2 else re.escape(part) for i, part in enumerate(parts)))


def captioned_samples(model: str, found: Iterator[Captioned]) -> list[Sample]:
    """Pictures with their captions; a prompt's pictures are its seeds, in order, where no column says the seed.

    Pictures of one prompt and one seed, as a batch has them, are told apart: 42, 42-1, 42-2.
    """
    names, taken, samples = {}, set(), []
    for one in found:
        prompt, said = one.captions[0], one.meta.get("seed")
        said = "" if said is None else str(said).strip()
        free = names.setdefault((prompt, said), seed_names(said))
        seed = next(name for name in free if (prompt, name) not in taken)
        taken.add((prompt, seed))
        samples.append(Sample(model, one.picture, prompt, seed))
    return samples


def seed_names(seed: str) -> Iterator[str]:
    """42, 42-1, 42-2 and so on; of a blank seed 0, 1, 2."""
    return (f"{seed}-{number}" if seed and number else seed or str(number) for number in itertools.count())
