"""The table of segmentation, in Markdown."""

from __future__ import annotations

from typing import Any

from vidistill.tasks.report.segments import METRICS, markdown


def test_one_seed_shows_no_deviation() -> None:
    row: dict[str, Any] = {"method": "random", "labels": "hard", "points": 1, "bytes": 1, "seconds": 1.0, "sets": [1],
                           "differences": {}}  # fmt: skip
    row |= {f"{name}_{of}": value for name in METRICS for of, value in (("mean", 0.5), ("std", 0.25))}
    rows = [row | {"seeds": seeds} for seeds in (1, 2)]
    one, two = markdown({"title": "", "data": {}, "rows": rows}).splitlines()[-2:]
    assert one.split(" | ")[2:7] == ["50.0"] * 5
    assert two.split(" | ")[2:7] == ["50.0 ± 25.0"] * 5
