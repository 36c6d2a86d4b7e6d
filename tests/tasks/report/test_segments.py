"""The table of segmentation, in Markdown."""

from __future__ import annotations

from typing import Any

import pytest

from vidistill.flows.use import print_segments
from vidistill.tasks.report.segments import COMPARED, METRICS, markdown

ROW: dict[str, Any] = {"method": "random", "labels": "hard", "points": 1, "bytes": 1, "seconds": 1.0, "sets": [1],
                       "differences": {}, "seeds": 1}  # fmt: skip
ROW |= {f"{name}_{of}": value for name in METRICS for of, value in (("mean", 0.5), ("std", 0.25))}


def test_the_terminal_and_the_page_have_one_order(capsys: pytest.CaptureFixture[str]) -> None:
    better = {"method": "tsgf", "differences": {COMPARED: {"mean": 0.25, "interval": None}}, f"{COMPARED}_mean": 0.75}
    document = {"title": "", "data": {}, "rows": [ROW | {"method": "full", "points": None}, ROW, ROW | better]}
    print_segments(document)
    shown = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    page = [line.split(" | ")[0].strip("| ") for line in markdown(document).splitlines()[-3:]]
    assert [line[0] for line in shown] == page == ["tsgf", "random", "full"]
    assert shown[0][7] == "+25.0"


def test_one_seed_shows_no_deviation() -> None:
    rows = [ROW | {"seeds": seeds} for seeds in (1, 2)]
    one, two = markdown({"title": "", "data": {}, "rows": rows}).splitlines()[-2:]
    assert one.split(" | ")[2:7] == ["50.0"] * 5
    assert two.split(" | ")[2:7] == ["50.0 ± 25.0"] * 5
