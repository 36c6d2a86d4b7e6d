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


def columns(table: Path) -> tuple[str, ...]:
    """A table's column names, lower case."""
    if table.suffix.lower() == ".parquet":
        return tuple(name.strip().lower() for name in _parquet(table).schema.names)
    with table.open(encoding="utf-8-sig", newline="", errors="replace") as file, _as_table(table):
        return tuple(name.strip().lower() for name in next(csv.reader(file), []))


@contextmanager
def _as_table(table: Path) -> Iterator[None]:
    try:
        yield
    except csv.Error as error:
        raise RequestError(f"{table} is no CSV: {error}") from error


def records(table: Path) -> Iterator[tuple[dict[str, str], str]]:
    """Every row as {column: text} with the place it stands at."""
    if table.suffix.lower() == ".parquet":
        for number, record in enumerate(_parquet(table).to_pylist()):
            yield {str(name).lower(): _cell(value) for name, value in record.items()}, f"{table.name}, row {number}"
        return
    reader = csv.DictReader(io.StringIO(text(table), newline=""), fieldnames=columns(table), restkey="")
    with _as_table(table):
        next(reader, None)
        for record in reader:
            yield {name: _cell(value) for name, value in record.items()}, f"{table.name}, line {reader.line_num}"


def _cell(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _parquet(table: Path) -> Any:
    if importlib.util.find_spec("pyarrow") is None:
        raise RequestError(f"{table} is a Parquet file: install pyarrow, or save it as CSV with the same columns")
    try:
        return importlib.import_module("pyarrow.parquet").read_table(table)
    except (OSError, ValueError) as error:  # pyarrow's own errors are one of them
        raise RequestError(f"{table} is no Parquet file: {error}") from error


def text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
