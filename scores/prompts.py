"""Prompt lists by number: the picture 00012 belongs to prompt 12 of the list."""

from pathlib import Path

from ..intake import PROMPT_COLUMNS, BadFile, Problem, open_parquet, parquet_rows
from ..intake import read_prompts as read_list


def read_prompts(path: Path) -> list[str]:
    """The prompts of a list, in its order. Raises: BadFile where one of them is missing, since all that follow would slip.

    .txt, .tsv, .csv, .jsonl, .json: see intake.read_prompts. .parquet: Pick-a-Pic's captions, each once.
    """
    path = Path(path)
    if path.suffix.lower() == ".parquet":
        return of_parquet(path)
    rows = list(read_list(path))
    missing = [str(row.number - 1) for row in rows if isinstance(row, Problem)]
    if missing or not rows:
        what = f"no prompt at {', '.join(missing[:8])} (counted from 0)" if missing else "no prompts"
        raise BadFile(f'"{path.name}" has {what}; every picture is scored against its prompt.')
    return [row.values["prompt"] for row in rows]


def of_parquet(path: Path) -> list[str]:
    """Streams the caption column alone; Pick-a-Pic repeats a caption for every pair, here each comes once."""
    columns = {column.lower(): column for column in open_parquet(path).schema_arrow.names}
    column = next((columns[name] for name in PROMPT_COLUMNS if name in columns), None)
    if column is None:
        raise BadFile(f'"{path.name}" has no column {", ".join(PROMPT_COLUMNS)} (its columns: {", ".join(columns)}).')
    rows = list(parquet_rows(path, [column]))
    if damaged := [row for row in rows if isinstance(row, Problem)]:
        raise BadFile(f'"{path.name}", row {damaged[0].number}: {damaged[0].reason}')
    return list(dict.fromkeys(row.values[column] for row in rows if isinstance(row.values[column], str)))
