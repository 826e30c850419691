"""A run's folder: run.json says how the numbers came about, scores.jsonl holds every raw score, a line each.

Lines are only ever added, so a run that was cut off goes on where it stopped; a cut line at the end is dropped.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from ..intake import Row, read_json, write_text
from ..intake import read_rows as read_table
from .samples import Sample
from .scorer import Scorer

KEYS = ("by", "model", "picture", "sha256", "prompt", "references")
PACKAGES = ("torch", "transformers", "tokenizers", "pillow", "numpy", "scipy")


def identity(record: dict) -> str:
    """Twelve hex digits of a scorer's record: another checkpoint or preprocessing is another scorer."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:12]


def versions() -> dict[str, str]:
    import platform
    from importlib import metadata

    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # transformers is not needed for every scorer
            found[name] = "not installed"
    return found


class Run:
    """A folder of raw scores. Opening an existing one continues it."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.about = read_json(self.folder / "run.json") if self.exists() else {"scorers": {}}
        self.rows = read_rows(self.folder / "scores.jsonl")
        self.known = {row_key(row) for row in self.rows if "score" in row}

    def exists(self) -> bool:
        return (self.folder / "run.json").is_file()

    @classmethod
    def existing(cls, folder: Path) -> "Run":
        """A run that has scores. Raises a sentence where there is none."""
        if not (Path(folder) / "run.json").is_file():
            raise ValueError(f'Make a run with vico-spin evaluate first.\n"{folder}" is none: it has no run.json.')
        run = cls(folder)
        if not run.known:
            raise ValueError(f'Let the run finish first.\n"{folder}" has no scores yet.')
        return run

    def describe(self, **facts) -> None:
        """Keeps facts of the run (models in order, protocol …) beside the versions that made it."""
        self.about = {**self.about, **facts, "versions": versions()}
        write_text(self.folder / "run.json", json.dumps(self.about, indent=1, ensure_ascii=False))

    def describe_scorer(self, scorer: Scorer) -> str:
        """Keeps the scorer's record. Returns its identity."""
        record = scorer.record()
        self.describe(scorers={**self.about["scorers"], identity(record): record})
        return identity(record)

    def add(self, rows: Iterable[dict]) -> None:
        """Appends raw scores and has them on the disk before it returns. Raises: OSError with a sentence."""
        rows, path = list(rows), self.folder / "scores.jsonl"
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(
                "Look whether the file is writable and the disk has room.\n"
                f'"{path}" could not be written ({error.strerror}).'
            ) from error
        self.rows += rows
        self.known |= {row_key(row) for row in rows if "score" in row}


def row_of(sample: Sample, scorer: str, by: str, sha256: str) -> dict:
    """What a raw score says beside its number."""
    return {
        "model": sample.model,
        "prompt": sample.prompt,
        "seed": sample.seed,
        "concept": sample.concept,
        "references": references_key(sample.references),
        "picture": str(sample.picture),
        "sha256": sha256,
        "scorer": scorer,
        "by": by,
    }


def references_key(references: tuple[Path, ...]) -> str:
    """Which photos a picture was held against, in twelve digits of their names and sizes; empty without any."""
    names = [f"{path.name}:{path.stat().st_size}" for path in references]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:12] if names else ""


def row_key(row: dict) -> tuple:
    """Two rows of one key are the same measurement."""
    return tuple(row[name] for name in KEYS)


def is_score(row: dict) -> bool:
    return all(isinstance(row.get(name), str) for name in KEYS)


def read_rows(path: Path) -> list[dict]:
    """Every whole row of scores.jsonl; a last line that was cut off is taken out of the file too.

    Rows that are damaged are counted and left out: what they measured is scored again.
    """
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        write_text(path, whole.decode("utf-8", "replace"))
    found = list(read_table(path))
    rows = [row.values for row in found if isinstance(row, Row) and is_score(row.values)]
    if len(rows) < len(found):
        logging.warning('"%s": %d rows are damaged, and are scored again', path, len(found) - len(rows))
    return rows
