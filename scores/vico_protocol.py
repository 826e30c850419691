"""ViCo's evaluation (arXiv 2306.00971 §4): 16 concepts × 31 prompts × 8 samples; DINO, CLIP-I, CLIP-T.

ViCo's own evaluation code was never released. "standard" is the DreamBooth practice that its text describes;
"dreammatcher" is what DreamMatcher's released evaluate.py does, on ViCo's data, to the letter.
"""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..intake import PICTURE_ENDINGS, Report, lines_of, pictures_below, read_text
from .samples import Sample, matches

PROTOCOLS = ("standard", "dreammatcher")
SAMPLES, PROMPTS = 8, 31
LAYOUTS = ("{concept}/prompt_{prompt}/samples/{seed}", "{concept}/prompt_{prompt}/{seed}", "{concept}/{prompt}_{seed}")
LIVE = {"black_cat", "brown_cat", "brown_dog", "brown_dog2", "fat_dog"}
PHOTOS = {  # concept as results are named: folder of its photos, where the two differ
    "cat_statue": "cat-toy",
    "brown_teddybear": "teddybear",
    "alarm_clock": "clock",
    "red_vase": "vase",
    "wooden_barn": "barn",
}
PUBLISHED = {  # ViCo's data set, standard protocol: DINO, CLIP-I, CLIP-T
    "SD, not personalised": (0.516, 0.770, 0.215),
    "Textual Inversion": (0.529, 0.762, 0.220),
    "DreamBooth": (0.638, 0.808, 0.237),
    "Custom Diffusion": (0.667, 0.810, 0.218),
    "ViCo": (0.643, 0.816, 0.228),
}


class Data(NamedTuple):
    """Photos and prompts of an evaluation set. prompts: templates with {}, for things and for live subjects."""

    folder: Path
    things: list[str]
    live: list[str]
    live_concepts: set[str]

    def templates(self, concept: str) -> list[str]:
        return self.live if concept in self.live_concepts else self.things

    def photos(self, concept: str) -> tuple[Path, ...]:
        folder = self.folder / concept
        if not folder.is_dir():
            folder = self.folder / PHOTOS.get(concept, concept)
        if not folder.is_dir():
            raise ValueError(f'The concept "{concept}" has no photos: there is no "{self.folder / concept}".')
        return tuple(pictures_below(folder, PICTURE_ENDINGS))


def read_data(folder: Path) -> Data:
    """ViCo's data (prompts_live_objects.txt, prompts_nonlive_objects.txt) or DreamBooth's (prompts_and_classes.txt)."""
    folder = Path(folder)
    dreambooth = folder / "prompts_and_classes.txt"
    if dreambooth.is_file():
        return read_dreambooth(dreambooth)
    files = [folder / f"prompts_{kind}_objects.txt" for kind in ("nonlive", "live")]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise ValueError(
            f'"{folder}" has neither prompts_and_classes.txt (DreamBooth) nor {" and ".join(missing)} (ViCo).'
        )
    things, live = (lines_of(read_text(path)) for path in files)
    return Data(folder, things, live, LIVE)


def read_dreambooth(path: Path) -> Data:
    """DreamBooth's file: a CSV block subject_name,class, then prompt lists for objects and for live subjects."""
    lines = [line.rstrip("\r") for line in read_text(path).split("\n")]
    start = lines.index("subject_name,class")
    end = next(i for i in range(start, len(lines)) if not lines[i].strip())
    classes = {row["subject_name"]: row["class"] for row in csv.DictReader(lines[start:end])}
    lists: list[list[str]] = []
    for line in lines[end:]:
        if line.startswith("prompt_list"):
            lists.append([])
        elif fit := re.match(r"'(.+?)'\.format", line):
            lists[-1].append(fit[1])
    if len(lists) != 2:
        raise ValueError(f'"{path}" has {len(lists)} prompt lists; two are needed: objects, then live subjects.')
    things, live = ([template.replace("{0} {1}", "{}") for template in prompts] for prompts in lists)
    return Data(path.parent, things, live, {name for name, kind in classes.items() if kind in ("dog", "cat")})


def scored_prompt(template: str, protocol: str) -> str:
    """What CLIP-T reads: the prompt without its placeholder; DreamMatcher leaves the braces where they stand."""
    return template if protocol == "dreammatcher" else " ".join(template.replace("{}", " ").split())


def samples_of(
    model: str, results: Path, data: Data, protocol: str, layout: str | None = None, report: Report | None = None
) -> list[Sample]:
    """A method's pictures, each with its concept's photos. results: laid out as LAYOUTS, or as `layout`."""
    missing = [field for field in ("{concept}", "{prompt}", "{seed}") if layout and field not in layout]
    if missing:
        raise ValueError(
            f"Write {' and '.join(missing)} into the layout.\n"
            f'"{layout}" has no such part, and ViCo\'s evaluation tells pictures by concept, prompt and seed.'
        )
    samples, photos = [], {}
    report = Report() if report is None else report
    for path, found in matches(results, [layout] if layout else LAYOUTS, report):
        concept, number = found["concept"], int(found["prompt"])
        templates = data.templates(concept)
        if number >= len(templates):
            raise ValueError(f'"{path}" belongs to prompt {number}; "{concept}" has {len(templates)} prompts.')
        if concept not in photos:
            photos[concept] = data.photos(concept)
        prompt = scored_prompt(templates[number], protocol)
        samples.append(Sample(model, path, prompt, found["seed"], photos[concept], concept))
    report.kept += len(samples)
    return samples


def load_scorers(protocol: str, clip: Path, dino: Path, tokenizer: Path | None) -> list:
    """What makes the protocol's three scorers: functions without arguments, so that one at a time is in memory."""
    from .clip_score import load_clip_image, load_clip_score
    from .dino import load as load_dino
    from .pictures import SquareThenClip

    steps = SquareThenClip() if protocol == "dreammatcher" else None
    return [
        lambda: load_dino(dino, protocol),
        lambda: load_clip_image(clip, preprocessing=steps),
        lambda: load_clip_score(clip, tokenizer, preprocessing=steps),
    ]


def summary(rows: Sequence[dict]) -> dict[str, dict[str, float]]:
    """{scorer: {model: mean}} as the papers average: over a prompt's samples, then prompts, then concepts.

    rows: scores, of one `by` for every scorer's name. A picture that was drawn again counts by its last row.
    """
    newest = {(row["by"], row["model"], row["picture"]): row for row in rows}
    grouped: dict[tuple, dict[str, dict[str, list[float]]]] = {}
    for row in newest.values():
        concepts = grouped.setdefault((row["scorer"], row["model"]), {})
        concepts.setdefault(row["concept"], {}).setdefault(row["prompt"], []).append(row["score"])
    table: dict[str, dict[str, float]] = {}
    for (scorer, model), concepts in grouped.items():
        means = [np.mean([np.mean(scores) for scores in prompts.values()]) for prompts in concepts.values()]
        table.setdefault(scorer, {})[model] = float(np.mean(means))
    return table


def gaps(samples: Sequence[Sample]) -> list[str]:
    """What a full evaluation would have and this one has not, one sentence a concept."""
    found: dict[str, dict[str, int]] = {}
    for sample in samples:
        prompts = found.setdefault(sample.concept, {})
        prompts[sample.prompt] = prompts.get(sample.prompt, 0) + 1
    sentences = []
    for concept, prompts in sorted(found.items()):
        short = sum(count < SAMPLES for count in prompts.values())
        if len(prompts) < PROMPTS or short:
            sentences.append(
                f"{concept}: {len(prompts)} of {PROMPTS} prompts, {short} of them with fewer than {SAMPLES} samples"
            )
    return sentences
