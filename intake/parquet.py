"""Parquet tables, a batch of rows at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from .files import BadFile, check_file
from .limits import LIMITS
from .tables import Problem, Row

BATCH = 64  # rows: pictures are in them


def open_parquet(path: Path):
    """pyarrow's ParquetFile. Raises: BadFile where it is none, or pyarrow is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise BadFile(
            f'Install pyarrow (pip install pyarrow).\n"{path.name}" is read by it, and it is not here.'
        ) from error
    check_file(path, LIMITS.table_bytes)
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise BadFile(f'Download the file again.\n"{path.name}" is no parquet file ({error}).') from error


def parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Row | Problem]:
    """These columns of every row. A part that is damaged is a Problem, and the rows behind it are lost."""
    import pyarrow

    table, number = open_parquet(path), 0
    try:
        for batch in table.iter_batches(batch_size=BATCH, columns=list(columns)):
            for values in batch.to_pylist():
                number += 1
                yield Row(number, values)
    except (pyarrow.ArrowException, OSError) as error:
        yield Problem(number + 1, f"damaged from here on ({error})")
