"""Write the README's tables from reports: nobody types a number.

    python tests/benchmarks/write_tables.py README.md NAME=REPORT.json …

Between `<!-- table NAME -->` and `<!-- end -->` the README gets the rows of that report, its notes and nothing else.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

COLUMNS = [
    "method",
    "recipe",
    "ipc",
    "student",
    "top-1 %",
    "− Random (paired)",
    "top-5 %",
    "AUC",
    "F1",
    "bytes",
    "seconds",
    "peak MB",
    "PFLOP",
    "seeds",
]
HEADER = f"| {' | '.join(COLUMNS)} |"


def main() -> None:
    readme = Path(sys.argv[1])
    text = readme.read_text(encoding="utf-8")
    for argument in sys.argv[2:]:
        name, _, report = argument.partition("=")
        pattern = re.compile(rf"(<!-- table {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            sys.exit(f"{readme} has no `<!-- table {name} -->` … `<!-- end -->`.")
        table = tables(json.loads(Path(report).read_text(encoding="utf-8")))
        text = pattern.sub(lambda match, table=table: match[1] + table + match[2], text)
    readme.write_text(text, encoding="utf-8")


def tables(document: dict[str, Any]) -> str:
    """A Markdown table for each kind of label, and the notes that say where and how long."""
    parts = []
    for kind in ("hard", "soft", "online"):
        rows = [row for row in document["rows"] if row["labels"] == kind]
        if rows:
            rows.sort(
                key=lambda row: (row["ipc"] is None, row["ipc"] or 0, row["student"], row["recipe"], -row["top1_mean"])
            )
            lines = [f"**{kind} labels**", "", HEADER, "|---" * len(COLUMNS) + "|", *map(line, rows), ""]
            parts += lines
    return "\n".join([*parts, *(f"{note}" for note in document["notes"]), ""])


def line(row: dict[str, Any]) -> str:
    difference = "" if row["difference_mean"] is None else f"{100 * row['difference_mean']:+.1f}"
    if difference and row["difference_error"] is not None:
        difference += f" ± {100 * row['difference_error']:.1f}"
    cells = [
        f"{row['method']} {row['variant']}".strip(),
        row["recipe"],
        "all" if row["ipc"] is None else str(row["ipc"]),
        row["student"],
        f"{100 * row['top1_mean']:.1f} ± {100 * row['top1_std']:.1f}",
        difference,
        f"{100 * row['top5_mean']:.1f}",
        f"{row['auc_mean']:.3f}",
        f"{row['f1_mean']:.3f}",
        f"{row['bytes'] / 1e6:.2f} MB",
        f"{row['seconds']:.0f}",
        f"{row['peak_memory_bytes'] / 1e6:.0f}",
        f"{row['flops'] / 1e15:.3f}",
        str(row["seeds"]),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
