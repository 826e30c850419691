"""Prompt lists as they are published: text lines, PartiPrompts, HPD's JSON, Pick-a-Pic's parquet, CSV tables."""

import csv
import importlib.util
import json
from pathlib import Path

COLUMNS = ("prompt", "caption", "text")  # of a table, whatever its case; the first that is there


def read_prompts(path: Path) -> list[str]:
    """The prompts of a list, in its order, so that picture 00012 belongs to prompt 12.

    .txt: a prompt a line. .tsv: PartiPrompts (1,632 rows; quotes are letters there). .csv: a column prompt, caption or
    text. .json: a list of prompts (HPDv2 benchmark) or of objects with "prompt". .parquet: Pick-a-Pic's captions, each
    once.
    """
    path = Path(path)
    readers = {".txt": of_lines, ".tsv": of_tsv, ".csv": of_csv, ".json": of_json, ".parquet": of_parquet}
    if path.suffix not in readers:
        raise ValueError(f'"{path.name}" is no prompt list; give one of {", ".join(readers)}.')
    if not path.is_file():
        raise ValueError(f'There is no prompt list "{path}".')
    prompts = readers[path.suffix](path)
    empty = [str(i) for i, prompt in enumerate(prompts) if not prompt.strip()]
    if empty or not prompts:
        what = f"an empty prompt at row {', '.join(empty[:8])}" if empty else "no prompts"
        raise ValueError(f'"{path.name}" has {what}; every picture is scored against its prompt.')
    return prompts


def of_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return [line.strip() for line in lines if line.strip()]


def of_tsv(path: Path) -> list[str]:
    return of_table(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def of_csv(path: Path) -> list[str]:
    return of_table(path)


def of_table(path: Path, **dialect) -> list[str]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, **dialect))
    column = prompt_column(list(rows[0]) if rows else [], path)
    return [row[column] or "" for row in rows]


def prompt_column(columns: list[str], path: Path) -> str:
    by_name = {column.lower(): column for column in columns if column}
    for name in COLUMNS:
        if name in by_name:
            return by_name[name]
    raise ValueError(f'"{path.name}" has no column {", ".join(COLUMNS)} (its columns: {", ".join(columns) or "none"}).')


def of_json(path: Path) -> list[str]:
    try:
        items = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f'"{path.name}" is not JSON ({error}).') from error
    if isinstance(items, list) and all(isinstance(item, str) for item in items):
        return items
    if isinstance(items, list) and all(isinstance(item, dict) and "prompt" in item for item in items):
        return [item["prompt"] for item in items]
    raise ValueError(f'"{path.name}" must be a list of prompts, or of objects that have "prompt".')


def of_parquet(path: Path) -> list[str]:
    """Streams the caption column alone; Pick-a-Pic repeats a caption for every pair, here each comes once."""
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError(f'"{path.name}" is read by pyarrow, which is not installed: pip install pyarrow.')
    from pyarrow.parquet import ParquetFile

    file = ParquetFile(path)
    column = prompt_column(file.schema_arrow.names, path)
    batches = (batch.column(0).to_pylist() for batch in file.iter_batches(columns=[column]))
    return list(dict.fromkeys(prompt for batch in batches for prompt in batch))
