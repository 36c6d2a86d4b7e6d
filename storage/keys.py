"""Keys: the same request has the same key in every process, on every machine, in every year."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

KEY_LENGTH = 24


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces; sets are sorted, tuples are lists, `1.0` stays a float.

    Raises:
        TypeError: for anything that JSON does not know (an array, a path, an object).
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(_plain(item) for item in value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return [_plain(item) for item in value]
    return value


def digest(value: Any) -> str:
    """The key of a value: the first 24 hexadecimal digits (96 bits) of the SHA-256 of its canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:KEY_LENGTH]


def is_key(name: str) -> bool:
    """Whether a folder may be an artifact's, or a checkpoint's: users may keep files of their own beside these."""
    return re.fullmatch(rf"[0-9a-f]{{{KEY_LENGTH}}}(-\d+)?", name) is not None


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
