"""What was voted on, as a folder: a Pick-a-Pic table for trainers, and a run of scores for Score Report."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import folder_paths
from PIL import Image

from ...intake import write_atomically
from ...scores.comparison import Duel, duels, tables
from ...scores.run import Run, row_of
from ...scores.samples import Sample
from ...scores.scorer import Scorer
from ...spin_core.votes import pair_id
from ..host.folders import as_folder_name


@dataclass(frozen=True)
class Pair:
    """Two pictures of one prompt, as files."""

    id: str
    prompt: str
    pictures: tuple[Path, Path]


class People(Scorer):
    """The voters, as a report names them."""

    name = "people's votes"
    formula = "share of the voters that prefer the picture, ties half"


def lay_out(prompts: list[str], pictures: tuple[list[Image.Image], list[Image.Image]], name: str) -> list[Pair]:
    """The pairs, their pictures in output/scores/<name>-<mark of them all>: the same pairs have the same folder."""
    ids = [pair_id(*pair, prompt) for *pair, prompt in zip(*pictures, prompts, strict=True)]
    mark = hashlib.sha256(" ".join(ids).encode()).hexdigest()[:10]
    home = Path(folder_paths.get_output_directory()) / "scores" / f"{as_folder_name(name, 'votes')}-{mark}"
    pairs = []
    for pair, prompt, *both in zip(ids, prompts, *pictures, strict=True):
        files = (home / "first" / f"{pair}.png", home / "second" / f"{pair}.png")
        for file, picture in zip(files, both, strict=True):
            if not file.is_file():
                write_atomically(file, lambda path, picture=picture: picture.save(path, "PNG"))
        pairs.append(Pair(pair, prompt, files))
    return pairs


def home_of(pairs: list[Pair]) -> Path:
    return pairs[0].pictures[0].parent.parent


def write_table(pairs: list[Pair], share: dict[str, float]) -> None:
    """metadata.jsonl with the columns of Pick-a-Pic, which SPIN Dataset reads: label_0 and label_1 are shares of the votes."""
    home = home_of(pairs)
    rows = [
        {
            **{f"jpg_{n}": file.relative_to(home).as_posix() for n, file in enumerate(pair.pictures)},
            "caption": pair.prompt,
            "label_0": share[pair.id],
            "label_1": 1 - share[pair.id],
        }
        for pair in pairs
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(home / "metadata.jsonl", lambda path: path.write_text(lines, encoding="utf-8"))


def write_run(pairs: list[Pair], share: dict[str, float], names: tuple[str, str]) -> list[Duel]:
    """The votes as a run of scores, in place of the one before. Returns how the second fares against the first."""
    for former in ("run.json", "scores.jsonl"):
        (home_of(pairs) / former).unlink(missing_ok=True)
    run, people = Run(home_of(pairs)), People()
    run.describe(models=list(names))
    by = run.describe_scorer(people)
    rows = []
    for pair in pairs:
        for name, file, score in zip(names, pair.pictures, (share[pair.id], 1 - share[pair.id]), strict=True):
            sha256 = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
            sample = Sample(name, file, pair.prompt, pair.id)
            rows.append(row_of(sample, people.name, by, sha256) | {"score": score, "pair": pair.id})
    run.add(rows)
    return duels(tables(run.rows, list(names)), names[0])
