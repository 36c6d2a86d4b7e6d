"""Tables as rows of text: CSV and Parquet files, by their columns' names in lower case."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vidistill.storage.errors import RequestError

TABLE_SUFFIXES = frozenset({".csv", ".parquet"})


def columns(table: Path) -> tuple[str, ...]:
    """A table's column names, lower case.

    Raises:
        RequestError: it cannot be read as a table.
    """
    if table.suffix.lower() == ".parquet":
        return tuple(name.strip().lower() for name in _parquet(table, "read_schema").names)
    with _as_table(table), table.open(encoding="utf-8-sig", newline="", errors="replace") as file:
        return tuple(name.strip().lower() for name in next(csv.reader(file), []))


def header(path: Path) -> tuple[str, ...]:
    """The column names of a file that may be a table, none of one that is none or cannot be read."""
    try:
        return columns(path) if path.suffix.lower() in {".tsv", *TABLE_SUFFIXES} else ()
    except RequestError:
        return ()


@contextmanager
def _as_table(table: Path) -> Iterator[None]:
    try:
        yield
    except (csv.Error, OSError) as error:
        raise RequestError(f"{table} cannot be read as CSV: {getattr(error, 'strerror', error)}") from error


def records(table: Path) -> Iterator[tuple[dict[str, str], str]]:
    """Every row as {column: text} with the place it stands at."""
    if table.suffix.lower() == ".parquet":
        for number, record in enumerate(_parquet(table, "read_table").to_pylist()):
            yield {str(name).lower(): _cell(value) for name, value in record.items()}, f"{table.name}, row {number}"
        return
    reader = csv.DictReader(io.StringIO(text(table), newline=""), fieldnames=columns(table), restkey="")
    with _as_table(table):
        next(reader, None)
        for record in reader:
            yield {name: _cell(value) for name, value in record.items()}, f"{table.name}, line {reader.line_num}"


def _cell(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _parquet(table: Path, read: str) -> Any:
    if importlib.util.find_spec("pyarrow") is None:
        raise RequestError(f"{table} is a Parquet file: install pyarrow, or save it as CSV with the same columns")
    try:
        return importlib.import_module("pyarrow.parquet").__dict__[read](table)
    except (OSError, ValueError) as error:  # pyarrow's own errors are one of them
        raise RequestError(f"{table} is no Parquet file: {error}") from error


def text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from error
