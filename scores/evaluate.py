"""Scores folders of pictures: one scorer at a time in memory, each raw number kept, what is known not asked again."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from ..intake import LIMITS, PICTURE_ENDINGS, Unusable, open_picture, pictures_below, read_bytes
from .run import Run, row_key, row_of
from .samples import Sample
from .scorer import Scorer

CHUNK, CHUNK_WITH_REFERENCES = 32, 128  # pictures between two writes; references are looked at once a chunk

Asked = tuple[Sample, bytes, dict]  # a picture to score: whose, its file's bytes, its row without the number


def evaluate(run: Run, samples: Sequence[Sample], loaders: Sequence[Callable[[], Scorer]], tell=print) -> list[str]:
    """Adds to the run what it lacks. Returns the scorers' identities.

    loaders: functions that load a scorer. tell: takes a line of progress.
    """
    run.describe(models=list(dict.fromkeys([*run.about.get("models", []), *(s.model for s in samples)])))
    return [score_all(run, samples, load(), tell) for load in loaders]


def score_all(run: Run, samples: Sequence[Sample], scorer: Scorer, tell) -> str:
    """Adds what the run lacks by one scorer. Returns the scorer's identity."""
    by, done = run.describe_scorer(scorer), 0
    size = CHUNK_WITH_REFERENCES if scorer.needs_references else CHUNK
    for chunk in chunks(in_order(samples), size):
        asked = list(unknown(run, chunk, scorer, by))
        run.add(score_chunk(scorer, asked))
        done += len(chunk)
        tell(f"{scorer.name}: {done} of {len(samples)} pictures" + ("" if asked else " (known already)"))
    return by


def in_order(samples: Sequence[Sample]) -> list[Sample]:
    """Sorted so that one prompt's and one concept's pictures meet in a chunk and are looked up once."""
    return sorted(samples, key=lambda sample: (sample.references, sample.prompt, sample.seed, sample.model))


def chunks(samples: Sequence[Sample], size: int) -> Iterator[list[Sample]]:
    """Runs of at most `size` samples that share their references."""
    start = 0
    for i in range(1, len(samples) + 1):
        if i == len(samples) or i - start == size or samples[i].references != samples[start].references:
            yield list(samples[start:i])
            start = i


def unknown(run: Run, samples: Sequence[Sample], scorer: Scorer, by: str) -> Iterator[Asked]:
    """The pictures that this scorer has not yet scored as they are on the disk now."""
    for sample in samples:
        try:
            data = read_bytes(sample.picture, LIMITS.picture_bytes)
        except Unusable:
            data = b""  # which no picture is: it is named where it does not open
        row = row_of(sample, scorer.name, by, hashlib.sha256(data).hexdigest()[:16])
        if row_key(row) not in run.known:
            yield sample, data, row


def score_chunk(scorer: Scorer, asked: Sequence[Asked]) -> list[dict]:
    """The rows with their numbers; a picture that does not decode becomes a row with the error instead."""
    rows, pictures, samples = [], [], []
    for sample, data, row in asked:
        try:
            pictures.append(open_picture(data or sample.picture, str(sample.picture)))
            samples.append(sample)
            rows.append(row)
        except Unusable as error:
            row["error"] = error.reason
    references = decoded_references(scorer, samples)
    numbers = scorer.score(pictures, [sample.prompt for sample in samples], references) if pictures else []
    for row, number in zip(rows, numbers, strict=True):
        row |= {"score": number} if math.isfinite(number) else {"error": f"{scorer.name} gave {number}"}
    return [row for _, _, row in asked]


def broken(run: Run) -> dict[tuple[str, str], str]:
    """{(model, picture): why it has no score}, for pictures that were not mended since."""
    scored = {(row["by"], row["model"], row["picture"]) for row in run.rows if "score" in row}
    return {
        (row["model"], row["picture"]): row["error"]
        for row in run.rows
        if "error" in row and (row["by"], row["model"], row["picture"]) not in scored
    }


def decoded_references(scorer: Scorer, samples: Sequence[Sample]) -> list[Image.Image] | None:
    if not (scorer.needs_references and samples):
        return None
    return [open_picture(path, str(path)) for path in samples[0].references]


def with_references(samples: Sequence[Sample], folder: Path) -> list[Sample]:
    """The samples, all held against the photos of one folder."""
    photos = tuple(pictures_below(folder, PICTURE_ENDINGS))
    return [sample._replace(references=photos) for sample in samples]
