"""What the CPU can do; importing this loads no torch."""

from __future__ import annotations

import functools
from pathlib import Path


def has_bf16() -> bool:
    """Whether the CPU multiplies bf16 itself."""
    return not flags().isdisjoint({"avx512_bf16", "amx_bf16"})


@functools.cache
def flags() -> frozenset[str]:
    """The CPU's instruction sets as Linux names them; none elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), frozenset())
