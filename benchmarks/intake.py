"""What reading through intake/ costs: python -m vico_spin.benchmarks.intake [--pictures 200] [--listed 100000] [--json]

Reading: a folder of pictures with captions and tables, once through intake and once through Pillow, csv and json alone, in
turn; the ratio is of medians. Listing: a data set of so many pictures and captions, in a process of its own; its seconds, its
memory and whether the report is exact.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from .harness import finish, flags, in_turn, machine, resident, timed

ROWS = 20_000  # of each table
LEFT_OUT_EVERY = 100  # one picture in so many has no caption


def write_folder(folder: Path, pictures: int) -> None:
    """Photos' sizes and kinds, a caption beside each, and two tables."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for number in range(pictures):
        pixels = Image.fromarray(draw.integers(0, 255, (48, 64, 3), np.uint8)).resize((1024, 768))
        pixels.save(folder / f"{number:05}.{'png' if number % 2 else 'jpg'}")
        (folder / f"{number:05}.txt").write_text(f"caption {number}", encoding="utf-8")
    rows = [{"file_name": f"{n}.png", "text": f"caption {n}, with a comma"} for n in range(ROWS)]
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["file_name", "text"])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def plain_pictures(folder: Path) -> int:
    from PIL import Image, ImageOps

    read = 0
    for path in sorted([*folder.glob("*.png"), *folder.glob("*.jpg")]):
        with Image.open(path) as image:
            ImageOps.exif_transpose(image).convert("RGB")
        read += len(path.with_suffix(".txt").read_text(encoding="utf-8")) > 0
    return read


def intake_pictures(folder: Path) -> int:
    from ..intake import Report, captioned_folder, open_picture

    read = 0
    for one in captioned_folder(folder, Report()):
        open_picture(one.picture, one.name)
        read += 1
    return read


def plain_tables(folder: Path) -> int:
    with open(folder / "table.csv", newline="", encoding="utf-8") as file:
        read = len(list(csv.DictReader(file)))
    with open(folder / "table.jsonl", encoding="utf-8") as file:
        return read + len([json.loads(line) for line in file])


def intake_tables(folder: Path) -> int:
    from ..intake import read_rows

    return sum(len(list(read_rows(folder / name))) for name in ("table.csv", "table.jsonl"))


CASES = {"pictures": (plain_pictures, intake_pictures), "tables": (plain_tables, intake_tables)}


def reading(pictures: int, repetitions: int) -> dict[str, float]:
    """Seconds of intake against seconds of the plain libraries."""
    ratios = {}
    with tempfile.TemporaryDirectory() as home:
        write_folder(Path(home), pictures)
        for name, ways in CASES.items():
            if len({read(Path(home)) for read in ways}) > 1:  # warms the disk's cache too
                raise RuntimeError(f"the two ways do not read the same {name}")
            cases = {read.__name__: partial(timed, partial(read, Path(home))) for read in ways}
            plain, ours = (taken["seconds"] for taken in in_turn(cases, repetitions).values())
            ratios[name] = ours / plain
    return ratios


def listing(pictures: int) -> dict[str, float]:
    """A child lists what this process has written: many links to one picture, so that the disk holds it."""
    with tempfile.TemporaryDirectory() as home:
        one = Path(home) / "one.png"
        one.write_bytes(b"is not opened by a listing")
        for number in range(pictures):
            folder = Path(home) / "set" / f"{number // 1000:04}"
            if number % 1000 == 0:
                folder.mkdir(parents=True)
            try:
                os.link(one, folder / f"{number:06}.png")
            except OSError:  # a file system has a bound of its own for links
                one = folder / f"{number:06}.png"
                one.write_bytes(b"x")
            if number % LEFT_OUT_EVERY:
                (folder / f"{number:06}.txt").write_text(f"caption {number}")
        command = [sys.executable, "-m", "vico_spin.benchmarks.intake", "--list", str(Path(home) / "set")]
        told = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout
    found = json.loads(told.splitlines()[-1])
    lost = -(-pictures // LEFT_OUT_EVERY)
    found["exact"] = found.pop("report") == [pictures - lost, lost]
    return found


def list_once(folder: Path) -> dict:
    """In the child: seconds, memory beside what was there before, and the report's two numbers."""
    from ..intake import Report
    from ..spin_core.data import Dataset

    before, report = resident("VmRSS"), Report()
    taken = timed(lambda: sum(1 for _ in Dataset(folder).samples(report)))
    return {
        "seconds": taken["seconds"],
        "processor's seconds": taken["cpu_seconds"],
        "MB": (resident("VmHWM") - before) / 2**20,
        "report": [report.kept, sum(report.counts.values())],
    }


def main() -> None:
    numbers = {"pictures": (200, "that are read"), "listed": (100_000, "pictures that are listed")}
    parser = flags(__doc__, **numbers, repetitions=(7, "medians of so many"))
    parser.add_argument("--list", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.list:
        print(json.dumps(list_once(options.list)))
        return
    found = {f"{k}, intake / plain": v for k, v in reading(options.pictures, options.repetitions).items()}
    found |= {f"listing, {name}": value for name, value in listing(options.listed).items()}
    finish({**machine(), **found}, options)


if __name__ == "__main__":
    main()
