"""Tables: .jsonl, .csv, .tsv and .json as numbered rows, read as a stream; a bad row is a Problem and ends nothing."""

import codecs
import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .files import BadFile, Unusable, open_regular
from .limits import LIMITS
from .texts import decode_text, read_text

PROMPT_COLUMNS = ("text", "prompt", "caption")  # in any case; the first that is there
DELIMITERS = ",;\t"
UNREADABLE = "\0\n"  # stands for a line that is no text; no text holds it
REPLACED = "\ufffd"  # what a decoder puts for what it cannot read


class Row(NamedTuple):
    """A row by its place in the file, the first being 1."""

    number: int
    values: dict


class Problem(NamedTuple):
    """A row that cannot be used, and why."""

    number: int
    reason: str


def read_rows(path: Path, needs: Sequence[str] = ()) -> Iterator[Row | Problem]:
    """The rows of a .jsonl, .csv or .tsv file.

    needs: one of these columns must stand in the heading. Raises: BadFile for a file as a whole.
    """
    reader = {".jsonl": json_rows, ".csv": csv_rows, ".tsv": tsv_rows}.get(path.suffix.lower())
    if reader is None:
        raise BadFile(f'Choose a .jsonl, .csv or .tsv file.\n"{path.name}" is none.')
    with open_regular(path, LIMITS.table_bytes) as file:
        yield from reader(lines_in(file, path.name), path.name, needs)


def lines_in(file: BinaryIO, name: str) -> Iterator[str]:
    """The file's lines with their line feeds, each decoded by itself: programs append in encodings of their own."""
    is_utf16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    file.seek(0)
    if is_utf16:
        file = io.TextIOWrapper(file, encoding="utf-16", errors="replace", newline="\n")
    while line := file.readline(LIMITS.json_bytes + 1):
        if len(line) > LIMITS.json_bytes:
            raise BadFile(
                f'Choose another table.\n"{name}" has a line of more than {LIMITS.json_bytes / 2**20:.0f} MB.'
            )
        yield decoded(line, name)


def decoded(line: str | bytes, name: str) -> str:
    """The line as text; UNREADABLE where it is none."""
    if isinstance(line, str):
        return UNREADABLE if REPLACED in line else line
    try:
        return decode_text(line, name)
    except Unusable:
        return UNREADABLE


def json_rows(lines: Iterator[str], name: str, needs: Sequence[str]) -> Iterator[Row | Problem]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):  # also a number of more digits than Python takes
            values = None
        yield Row(number, values) if isinstance(values, dict) else Problem(number, "no JSON object")


def csv_rows(lines: Iterator[str], name: str, needs: Sequence[str]) -> Iterator[Row | Problem]:
    """The delimiter is the one of , ; and tab that stands most often in the heading."""
    heading = next(lines, "")
    delimiter = max(DELIMITERS, key=heading.count)
    yield from delimited(heading, lines, name, needs, delimiter=delimiter)


def tsv_rows(lines: Iterator[str], name: str, needs: Sequence[str]) -> Iterator[Row | Problem]:
    """PartiPrompts' way: quotes are letters."""
    yield from delimited(next(lines, ""), lines, name, needs, delimiter="\t", quoting=csv.QUOTE_NONE)


def delimited(
    heading: str, lines: Iterator[str], name: str, needs: Sequence[str], **dialect
) -> Iterator[Row | Problem]:
    csv.field_size_limit(LIMITS.field_characters)
    try:
        columns = [column.strip() for column in next(csv.reader([heading], **dialect), [])]
    except csv.Error as error:
        raise BadFile(f'Write the columns\' names first.\nThe first line of "{name}" names none ({error}).') from error
    if not any(columns):
        raise BadFile(f'Write the columns\' names first.\n"{name}" has no such line.')
    if needs and not {column.lower() for column in columns} & set(needs):
        raise BadFile(f'Name a column {" or ".join(needs)}.\n"{name}" has none (its columns: {", ".join(columns)}).')
    rows, number = csv.reader(lines, **dialect), 0
    while True:
        number += 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Problem(number, f"no row ({error})")
            continue
        if "\0" in "".join(cells):
            yield Problem(number, "no text")
        elif cells:
            yield row_of(number, columns, cells, dialect["delimiter"])


def row_of(number: int, columns: Sequence[str], cells: list[str], delimiter: str) -> Row | Problem:
    """A caption that holds the delimiter without quotes has cut itself into more cells: in the last column it is put together."""
    if len(cells) > len(columns):
        if columns[-1].lower() not in PROMPT_COLUMNS:
            return Problem(number, f'more cells than columns: put quotes around a text that holds "{delimiter}"')
        last = len(columns) - 1
        cells = [*cells[:last], delimiter.join(cells[last:])]
    return Row(number, dict(zip(columns, cells, strict=False)))


def value_of(values: dict, names: Sequence[str]) -> str | list | None:
    """The first of the named columns that holds something, whatever its case: a text without blanks around it, or a list."""
    by_name = {str(column).lower(): value for column, value in values.items()}
    for name in names:
        value = by_name.get(name)
        if isinstance(value, list) and value:
            return value
        if isinstance(value, bool) or value != value:  # NaN, as pandas writes an empty cell
            continue
        if isinstance(value, str | int | float) and str(value).strip():
            return str(value).strip()
    return None


def read_json(path: Path):
    """A JSON file's value. Raises: Unusable where it is none."""
    return parse_json(read_text(path, LIMITS.json_bytes), path.name)


def parse_json(text: str, name: str):
    """The value. Raises: Unusable, which names `name`, where it is none."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise Unusable(name, "cannot be read: it nests too deep", "Write the file as plain JSON.") from error
    except ValueError as error:
        raise Unusable(name, f"is no JSON ({error})", "Write the file as JSON.") from error
