"""Write the tables of the README files from reports: nobody types a number.

    python tests/benchmarks/write_tables.py NAME=REPORT.json …

Wherever one of the pages says `<!-- table NAME -->` … `<!-- end -->`, the rows of that report and its notes stand
between the two afterwards, and nothing else. Between `<!-- best NAME -->` and `<!-- end -->` stands the best method of
each kind of labels and budget, beside Random and all clips; after `<!-- bytes NAME -->` the rows by kilobytes a class,
those in bold that none of their kind of labels beats with as many bytes; after `<!-- trained NAME -->` a row a way of
training students, a column a budget; after `<!-- iterations NAME -->` a row a method, a column a number of iterations.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vidistill.tasks.report.data import KINDS, Named

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [
    page
    for pages in ("README.md", "deployments/*.md", "deployments/presets/*.md", "tests/benchmarks/*.md")
    for page in REPOSITORY.glob(pages)
]
PAIRED = "− Random (paired)"
COLUMNS = [
    "method", "recipe", "ipc", "student", "top-1 %", PAIRED, "top-5 %", "AUC", "F1", "bytes", "seconds",
    "peak MB", "PFLOP", "seeds",
]  # fmt: skip
BEST_COLUMNS = ["labels", "ipc", "best", "student", "top-1 %", PAIRED, "Random", "all clips", "bytes"]
BYTES_COLUMNS = ["kB a class", "method", "budget", "recipe", "student", "top-1 %"]

Row = dict[str, Any]
Document = dict[str, Any]


def main() -> None:
    for argument in sys.argv[1:]:
        name, _, report = argument.partition("=")
        if not write(PAGES, name, json.loads(Path(report).read_text(encoding="utf-8"))):
            sys.exit(f"No page has `<!-- table {name} -->` or `<!-- best {name} -->`.")


def write(pages: list[Path], name: str, document: Document) -> int:
    """Put a report's tables where the pages ask for them; how many places that were."""
    places = 0
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for kind, made in MADE.items():
            pattern = re.compile(rf"(<!-- {kind} {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
            text, found = pattern.subn(lambda match, made=made: match[1] + made(document) + match[2], text)
            places += found
        page.write_text(text, encoding="utf-8")
    return places


def tables(document: Document) -> str:
    """A Markdown table for each kind of label, and the notes that say where and how long."""
    parts = []
    for kind in KINDS:
        rows = [row for row in document["rows"] if row["labels"] == kind]
        if rows:
            rows.sort(
                key=lambda row: (
                    budget(row) == "all", row["ipc"] or 0, row.get("kb") or 0, row["student"], row["recipe"],
                    -row["top1_mean"],
                )
            )  # fmt: skip
            parts += [f"**{kind} labels**", "", *header(COLUMNS, rows), *(line(cells(row)) for row in rows), ""]
    return "\n".join([*parts, *document["notes"], *training_time(document["rows"]), ""])


def training_time(rows: list[Row]) -> list[str]:
    """What a student of all clips took, by student; nothing where the report is older than that."""
    took = [f"{' '.join(filter(None, [row['student'], row['variant']]))} {row['student_seconds']:.0f} s" for row in rows
            if row["method"] == "full" and row.get("student_seconds")]  # fmt: skip
    return [f"A student of all clips was trained and tested in: {', '.join(took)}."] if took else []


def best(document: Document) -> str:
    """One row for each kind of labels and budget: the method that is ahead, with what it is measured against."""
    rows, lines = document["rows"], []
    for kind, name in dict.fromkeys((taught(row), budget(row)) for row in sorted(rows, key=order) if not random(row)):
        rivals = [row for row in rows if (taught(row), budget(row)) == (kind, name)]
        first = max((row for row in rivals if not random(row)), key=lambda row: row["top1_mean"])
        of_its_recipe = [row for row in rivals if random(row) and Named.of(row).setting == Named.of(first).setting]
        whole = [row for row in rows if row["method"] == "full" and same(row, first, "student", "training")]
        if name != "all":
            lines.append(
                line([kind, name, label(first), student(first), top1(first), difference(first),
                      *(top1(found[0]) if found else "" for found in (of_its_recipe, whole)), size(first)])
            )  # fmt: skip
    return "\n".join([*header(BEST_COLUMNS, rows), *lines, ""])


def by_bytes(document: Document) -> str:
    """A table of each kind of labels and way of training, the smallest set first."""
    parts = []
    for kind in dict.fromkeys(map(taught, sorted(document["rows"], key=order))):
        rows = [row for row in document["rows"] if taught(row) == kind and budget(row) != "all"]
        best, lines = (0.0, 0.0), []
        for kilobytes, row in sorted(
            ((kept(row) / len(document["classes"]) / 1000, row) for row in rows),
            key=lambda pair: (pair[0], -pair[1]["top1_mean"]),
        ):
            values = [f"{kilobytes:.1f}", label(row), budget(row), row["recipe"], student(row), top1(row)]
            place = kilobytes, row["top1_mean"]
            front = place[1] > best[1] or place == best
            best = place if front else best
            lines.append(line([f"**{value}**" if front else value for value in values]))
        if rows:
            labels, _, training = kind.partition(", ")
            parts += [f"**{', '.join(filter(None, [f'{labels} labels', training]))}**", ""]
            parts += [*header(BYTES_COLUMNS, rows), *lines, ""]
    return "\n".join([*parts, ""])


def trained(document: Document) -> str:
    """Top-1 of one method's clips, and of all clips, by how students were trained; the best of each budget in bold."""
    rows: list[Row] = document["rows"]
    budgets = list(dict.fromkeys(budget(row) for row in sorted(rows, key=lambda row: row["ipc"] or math.inf)))
    ways: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        ways.setdefault((row["student"], row["training"] or "as it is"), {})[budget(row)] = row
    best = {name: max(own[name]["top1_mean"] for own in ways.values() if name in own) for name in budgets}

    def shown(own: dict[str, Row], name: str) -> str:
        if name not in own:
            return ""
        bold = "**" * (own[name]["top1_mean"] == best[name])
        return f"{bold}{top1(own[name])}{bold}"

    lines = [line([*way, *(shown(own, name) for name in budgets)]) for way, own in ways.items()]
    return "\n".join([line(["student", "trained", *budgets]), "|---" * (len(budgets) + 2) + "|", *lines, ""])


def by_iterations(document: Document) -> str:
    """Top-1, and in brackets the seconds of making the set, by how many iterations the variants say; Random at none."""
    ways: dict[tuple[str, str], dict[int, str]] = {}
    for row in document["rows"]:
        number, _, unit = row["variant"].partition(" ")
        if unit == "iterations" or random(row):
            seconds = "" if random(row) else f" ({row['seconds']:.0f} s)"
            way = ways.setdefault((f"{row['method']}{Named.of(row).told} {row['recipe']}", row["student"]), {})
            way[int(number or 0)] = top1(row) + seconds
    numbers = sorted({number for found in ways.values() for number in found})
    lines = [line([*way, *(found.get(number, "") for number in numbers)]) for way, found in ways.items()]
    head = [line(["method", "student", *numbers]), "|---" * (len(numbers) + 2) + "|"]
    return "\n".join([*head, *lines, "", *document["notes"], ""])


MADE: dict[str, Callable[[Document], str]] = {
    "table": tables, "best": best, "bytes": by_bytes, "trained": trained, "iterations": by_iterations
}  # fmt: skip


def taught(row: Row) -> str:
    """The labels, and how students were trained where that differs: what is not ranked together."""
    return ", ".join(filter(None, [row["labels"], row.get("training")]))


def same(one: Row, other: Row, *names: str) -> bool:
    return all(one.get(name) == other.get(name) for name in names)


def random(row: Row) -> bool:
    """Whether it is what rows of its budget are measured against."""
    return Named.of(row).is_random


def order(row: Row) -> tuple[int, float, float]:
    """Kinds of labels, then clips a class, then kilobytes."""
    return KINDS.index(row["labels"]), row.get("kb") or 0, row["ipc"] or 0


def header(columns: list[str], rows: list[Row]) -> list[str]:
    """Reports know a t interval of the difference; before they did, its standard error."""
    intervals = any(row.get("difference_interval") is not None for row in rows)
    names = [f"{name[:-1]}, 95 %)" if name == PAIRED and intervals else name for name in columns]
    return [line(names), "|---" * len(names) + "|"]


def line(values: list[Any]) -> str:
    return f"| {' | '.join(map(str, values))} |"


def cells(row: Row) -> list[str]:
    return [
        label(row),
        row["recipe"],
        budget(row),
        student(row),
        top1(row),
        difference(row),
        f"{100 * row['top5_mean']:.1f}",
        f"{row['auc_mean']:.3f}",
        f"{row['f1_mean']:.3f}",
        size(row),
        f"{row['seconds']:.0f}",
        f"{row['peak_memory_bytes'] / 1e6:.0f}",
        f"{row['flops'] / 1e15:.3f}",
        str(row["seeds"]),
    ]


def budget(row: Row) -> str:
    """Clips or kilobytes a class."""
    if row.get("kb") is not None:
        return f"{row['kb']:g} kB"
    return "all" if row["ipc"] is None else str(row["ipc"])


def kept(row: Row) -> int:
    """Bytes of the form that was scored."""
    return int(row["bytes"] if row.get("bytes_coded") is None else row["bytes_coded"])


def label(row: Row) -> str:
    return Named.of(row).name


def student(row: Row) -> str:
    """Marked where the method itself used a network of another body."""
    used, own = ((row.get(name) or "").rpartition(":")[2] for name in ("network", "student"))
    return row["student"] + (" †" if used and used != own else "")


def top1(row: Row) -> str:
    """± over seeds, where there are any."""
    return f"{100 * row['top1_mean']:.1f}" + (f" ± {100 * row['top1_std']:.1f}" if row["seeds"] > 1 else "")


def difference(row: Row) -> str:
    found = "" if row["difference_mean"] is None else f"{100 * row['difference_mean']:+.1f}"
    spread = row["difference_error"] if row.get("difference_interval") is None else row["difference_interval"]
    return found if not found or spread is None else f"{found} ± {100 * spread:.1f}"


def size(row: Row) -> str:
    """Of what was scored: megabytes, or kilobytes where that says more."""
    return f"{kept(row) / 1e6:.2f} MB" if kept(row) >= 1e5 else f"{kept(row) / 1e3:.1f} kB"


if __name__ == "__main__":
    main()
