"""Prompt lists as they are published: text lines, PartiPrompts, HPD's JSON, tables, Pick-a-Pic's parquet."""

from collections.abc import Iterator
from pathlib import Path

from .files import BadFile
from .limits import LIMITS
from .tables import PROMPT_COLUMNS, Problem, Row, read_json, read_rows, value_of
from .texts import lines_of, read_text

ENDINGS = (".txt", ".tsv", ".csv", ".jsonl", ".json")


def read_prompts(path: Path) -> Iterator[Row | Problem]:
    """A list's prompts in its order, each as a Row whose values hold "prompt" and the row's other columns.

    .txt: a prompt a line. .tsv, .csv, .jsonl: a column text, prompt or caption. .json: a list of prompts, or of objects
    with one of these. Raises: BadFile where the file as a whole is no such list.
    """
    ending = path.suffix.lower()
    if ending == ".txt":
        yield from (Row(n, {"prompt": line}) for n, line in enumerate(lines_of(read_text(path, LIMITS.json_bytes)), 1))
    elif ending == ".json":
        yield from of_json(path)
    elif ending in ENDINGS:
        yield from of_table(path)
    else:
        raise BadFile(f'Choose a prompt list.\n"{path.name}" is none: {", ".join(ENDINGS)} are read.')


def of_json(path: Path) -> Iterator[Row | Problem]:
    entries = read_json(path)
    if not isinstance(entries, list):
        raise BadFile(f'Write a list of prompts, or of objects with "prompt".\n"{path.name}" is neither.')
    for number, entry in enumerate(entries, start=1):
        values = {"prompt": entry} if isinstance(entry, str) else entry
        yield prompt_of(number, values) if isinstance(values, dict) else Problem(number, "no prompt")


def of_table(path: Path) -> Iterator[Row | Problem]:
    for found in read_rows(path, needs=PROMPT_COLUMNS):
        yield found if isinstance(found, Problem) else prompt_of(found.number, found.values)


def prompt_of(number: int, values: dict) -> Row | Problem:
    prompt = value_of(values, PROMPT_COLUMNS)
    if not isinstance(prompt, str):
        return Problem(number, "no prompt")
    rest = {name: value for name, value in values.items() if str(name).lower() not in PROMPT_COLUMNS}
    return Row(number, {**rest, "prompt": prompt})
