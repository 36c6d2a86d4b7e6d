"""Accuracy against bytes: the front, the axes and what the page shows of them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from vidistill.tasks.report.bytes import LogAxis, bytes_charts, front, kilobytes
from vidistill.tasks.report.data import ReportData, Row
from vidistill.tasks.report.page import render_html, render_json
from vidistill.tasks.report.tables import tables


def row(method: str, top1: float, size: int, **others: Any) -> Row:
    values = {
        "dataset": "d", "split": "1", "protocol": "p", "recipe": "hard", "method": method, "variant": "", "ipc": 1,
        "student": "minic3d", "labels": "hard", "top1_mean": top1, "top1_std": 0.0, "top5_mean": 1.0, "auc_mean": 0.5,
        "f1_mean": 0.5, "bytes": size, "seconds": 1.0, "peak_memory_bytes": 1, "flops": 1, "seeds": 2, "artifact": "a",
        "per_class": [top1, top1], "top1": [top1, top1],
    }  # fmt: skip
    return Row.model_validate(values | others)


ROWS = [
    row("coded", 0.30, 4_000, ipc=None, kb=2, bytes_coded=4_000),
    row("coded", 0.25, 4_000, ipc=None, kb=2, variant="random", bytes_coded=4_000),
    row("tsgf", 0.28, 90_000, variant="coded", bytes_coded=5_000),
    row("coded", 0.5, 20_000, ipc=None, kb=10, bytes_coded=20_000),
    row("random", 0.2, 100_000),
    row("full", 0.6, 9_000_000, ipc=None),
    row("teacher", 0.7, 1_000_000, ipc=None),
    row("tsgf", 0.8, 100_000, labels="online", recipe="online"),
    row("tsgf", 0.9, 100_000, labels="soft", recipe="soft"),
]


def test_a_row_counts_the_bytes_of_the_form_that_was_scored():
    assert [kilobytes(one, 2) for one in ROWS] == [2.0, 2.0, 2.5, 10.0, 50.0, 4500.0, 500.0, 50.0, 50.0]


def test_the_front_is_what_nobody_beats_with_as_many_bytes():
    assert front(ROWS[:5], 2) == [ROWS[0], ROWS[3]]
    assert front([*ROWS[:5], row("dm", 0.31, 6_000)], 2)[1].method == "dm"
    assert front([row("dm", 0.3, 6_000), row("mtt", 0.3, 5_000)], 2) == [row("mtt", 0.3, 5_000)]
    assert front([row("dm", 0.3, 5_000), row("mtt", 0.3, 5_000)], 2) == [row("dm", 0.3, 5_000), row("mtt", 0.3, 5_000)]


def test_hard_and_soft_are_apart_and_all_clips_are_a_line():
    charts = bytes_charts(ROWS, 2)
    assert [chart.heading for chart in charts] == [f"minic3d, {kind} labels" for kind in ("hard", "soft", "online")]
    hard, soft, _ = charts
    assert len(hard.points) == 5
    assert [point.on_front for point in hard.points] == [False, False, True, False, True]  # Random's lie below
    assert hard.full == (hard.y_axis.at(0.6), "all clips: 60.0 %")
    assert len(soft.points) == 1
    first, last = hard.points[2], hard.points[4]
    assert hard.front == f"M{first.x} {first.y}H{last.x}V{last.y}H{hard.x_axis.end}"
    assert [(best, cells[0], cells[1], cells[4]) for best, cells in hard.lines] == [
        (True, "Coded", "2.0", "50"),
        (False, "Coded · random", "2.0", "42"),
        (False, "TSGF · coded", "2.5", "47"),
        (True, "Coded", "10.0", "83"),
        (False, "Random", "50.0", "33"),
    ]


def test_a_method_has_one_colour_and_its_compressed_video_is_square():
    hard, soft, _ = bytes_charts(ROWS, 2)
    shown = {name: (colour, square) for chart in (hard, soft) for colour, square, name in chart.legend}
    assert shown["TSGF"] == (shown["TSGF · coded"][0], False)
    assert [name for name, (_, square) in shown.items() if square] == ["Coded", "Coded · random", "TSGF · coded"]
    assert shown["Random"] == ("random", False)
    assert len({colour for colour, _ in shown.values()}) == 4


def test_a_variant_and_its_compressed_video_have_one_colour():
    """However students were trained."""
    union = {"method": "optdistill", "variant": "N=3, union"}
    rows = [row(**union, top1=0.3, size=4_000),
            row(**union | {"variant": "N=3, union coded"}, top1=0.3, size=4_000, bytes_coded=400),
            row("tsgf", 0.3, 4_000, variant="coded lr 0.1", training="lr 0.1", bytes_coded=300),
            row("tsgf", 0.3, 4_000, variant="lr 0.1", training="lr 0.1")]  # fmt: skip
    colours = [{colour for colour, _, _ in chart.legend} for chart in bytes_charts(rows, 2)]
    assert [len(own) for own in colours] == [1, 1]
    assert colours[0] != colours[1]


def test_what_lies_at_one_place_is_told_together_and_random_shows_beneath():
    [chart] = bytes_charts([row("coded", 0.3, 4_000, ipc=None, kb=2),
                            row("coded", 0.3, 4_000, ipc=None, kb=2, variant="random")], 2)  # fmt: skip
    assert {point.title for point in chart.points} == {
        "Coded, 2 kB: 2.0 kB a class, 30.0 %; Coded · random, 2 kB: 2.0 kB a class, 30.0 %"
    }
    drawn = [row("random", 0.3, 4_000), row("dm", 0.3, 4_000)]
    page = render_html(ReportData("t", "now", {}, ["a", "b"], drawn))
    sizes = re.findall(r'<rect class="(c0|random)"[^>]* width="(\d+)"', page)
    assert sizes == [("random", "12"), ("c0", "8")]


def test_equal_factors_are_equal_lengths():
    axis = LogAxis(1.0, 100.0)
    assert axis.at(10) - axis.at(1) == pytest.approx(axis.at(100) - axis.at(10), abs=0.2)
    assert [tick.label for tick in axis.ticks] == ["1", "2", "5", "10", "20", "50", "100"]
    assert [tick.label for tick in LogAxis(0.5, 3000.0).ticks] == ["1", "10", "100", "1000"]


@pytest.mark.parametrize("size", [28, 35, 300])
def test_an_axis_of_one_size_is_labelled(size: int) -> None:
    [chart] = bytes_charts([row("random", 0.2, 2000 * size), row("dm", 0.3, 2000 * size)], 2)
    assert [(tick.label, tick.position) for tick in chart.x_axis.ticks] == [(str(size), chart.points[0].x)]


def test_the_page_shows_them_with_what_the_search_tried():
    searches = {"coded, kb 2, hard": [
        {"crf": 46, "scale": 0.75, "frames": 0.5, "clips": 7, "bytes": 3900, "students": 4, "top1": 0.31},
        {"crf": 50, "scale": 1.0, "frames": 1.0, "clips": 9, "bytes": 4100, "students": 0, "top1": None},
    ]}  # fmt: skip
    data = ReportData("t", "now", {}, ["a", "b"], ROWS, searches=searches)
    page = render_html(data)
    section = page[page.index('<section id="bytes">') : page.index("</section>", page.index('<section id="bytes">'))]
    assert section.count("<rect") == 7
    assert '<a href="#bytes">' in page
    assert re.search(
        r"<td>46</td><td>75.0 %</td><td>50.0 %</td><td>7</td><td>3.9 kB</td><td>4</td><td>31.0</td>", section
    )
    assert "<td>9</td><td>4.1 kB</td><td>0</td><td>–</td>" in section
    assert render_json(data)["searches"] == searches
    assert render_json(data)["rows"][2]["bytes_coded"] == 5_000


def test_kilobytes_are_a_budget_of_their_own_in_the_tables():
    shown = tables(ROWS)[0]
    assert [group.heading for group in shown.groups] == [
        "minic3d · 2 kB per class",
        "minic3d · 10 kB per class",
        "minic3d · 1 per class",
    ]
    assert [line.random for line in shown.groups[0].lines] == [False, True]
    assert "90.0 kB, coded 5.0 kB" in shown.groups[2].lines[0].cells


def test_without_rows_of_a_budget_there_is_no_such_section():
    assert '<section id="bytes">' not in render_html(ReportData("t", "now", {}, ["a", "b"], [ROWS[5]]))
