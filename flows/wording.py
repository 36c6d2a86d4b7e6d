"""How a wrong request is refused: which parameter or option it is, what it got, and what it takes."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

OPTIONS = {"index.layout": "--layout", "index.split": "--split", "decode.frames": "--frames", "decode.size": "--size",
           "students": "--students", "front": "--front", "seeds": "--seeds", "ipc": "--ipc", "kb": "--kb",
           "protocol": "--protocol"}  # fmt: skip
"""Parameters of an experiment that have an option of their own."""
OTHER_OPTIONS = {"methods": "--method", "points": "--points", "split": "--split", "layout": "--layout"}
"""The same of what else is asked for: segments, an index."""
ALIKE = 0.75
"""How much of a name, at least, is another's that is meant."""
WANTED = {
    "tuple_type": "it takes a list, written [a, b]",
    "too_short": "it needs one at least",
    "model_type": "it takes parameters of its own, name: value",
    "greater_than": "it takes more than {gt:g}",
    "greater_than_equal": "it takes {ge:g} or more",
    "less_than": "it takes less than {lt:g}",
    "less_than_equal": "it takes {le:g} or less",
    "int_parsing": "it takes a whole number",
    "int_type": "it takes a whole number",
    "int_from_float": "it takes a whole number",
    "float_parsing": "it takes a number",
    "float_type": "it takes a number",
    "string_type": "it takes text",
    "literal_error": "it takes {expected}",
}
"""Instead of pydantic's words, which are for programmers."""


def refusal(error: ValidationError, model: type[BaseModel], where: str) -> str:
    """One sentence on the first thing that is wrong: what is misspelled may be what is missing elsewhere."""
    errors = error.errors()
    first: Mapping[str, Any] = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    place = first["loc"]
    name = ".".join(map(str, place))
    if first["type"] == "extra_forbidden":
        known = list(_fields_at(model, place[:-1]))
        meant = "".join(f" (is {one} meant?)" for one in get_close_matches(str(place[-1]), known, 1, cutoff=ALIKE))
        advice = f"it knows {', '.join(known)}" if known else "it has none"
        return f"{where} has no parameter {name!r}{meant}; {advice}."
    if first["type"] == "missing":
        return f"{where}: {name} is missing, and it has no default."
    if not place:
        return f"{where}: {_wanted(first)}."
    if first["type"] == "value_error" and isinstance(first["input"], dict):  # no one value is wrong
        return f"{where}: {name}: {_wanted(first)}."
    in_list = isinstance(place[-1], int)
    name = ".".join(map(str, place[:-1])) if in_list else name
    option = (OPTIONS | OTHER_OPTIONS).get(name)
    name += f" ({option})" if option else ""
    return f"{where}: {name} {'has' if in_list else 'is'} {_quoted(first['input'])}: {_wanted(first)}."


def usage(error: Any) -> str:
    """What the parser of the command line says of its usage error, as one sentence and where to read more."""
    said, cause = error.format_message(), error.__cause__
    if isinstance(cause, ValidationError):
        first: Mapping[str, Any] = cause.errors()[0]
        what = re.split(r"[;.,]", error.param.help or "")[0]
        said = f"{error.param.opts[0]} is {_quoted(first['input'])}: {_wanted(first)} ({what[:1].lower()}{what[1:]})"
    elif possible := getattr(error, "possibilities", None):
        near = get_close_matches(error.option_name, possible, 1, cutoff=ALIKE)
        said = f"{error.message}. Did you mean {near[0]}?" if near else error.message
    at_root = error.ctx is not None and error.ctx.parent is None
    command = "vidistill" if at_root else f"vidistill {sys.argv[1]}"  # the parser does not always tell the command
    return f"{said.rstrip('.')}{'' if said.endswith('?') else '.'} Try `{command} --help`."


def _fields_at(model: type[BaseModel], place: tuple[int | str, ...]) -> Iterable[str]:
    """The parameters beside the one that is not known: those of the model at `place`."""
    for name in (part for part in place if isinstance(part, str) and part in model.model_fields):
        annotation = model.model_fields[name].annotation
        nested = [one for one in (annotation, *get_args(annotation)) if isinstance(one, type)]
        model = next((one for one in nested if issubclass(one, BaseModel)), model)
    return model.model_fields


def _wanted(error: Mapping[str, Any]) -> str:
    words = WANTED.get(error["type"], "").format(**error.get("ctx", {}))
    return words or error["msg"].removeprefix("Value error, ")


def _quoted(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)
