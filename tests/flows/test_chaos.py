"""A little of the chaos that `python tests/chaos.py --minutes 120` makes for longer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from chaos import chaos


@pytest.mark.slow
def test_nothing_is_wrong_or_lost_in_chaos(tmp_path: Path) -> None:
    pytest.importorskip("moto.server", reason="moto[server] is not installed: pip install vidistill[dev]")
    if os.geteuid():
        pytest.skip("only root mounts a small disk")
    minutes = float(os.environ.get("VIDISTILL_CHAOS_MINUTES", "3"))
    tally = chaos(minutes, int(os.environ.get("VIDISTILL_CHAOS_SEED", "0")), tmp_path)
    assert tally.rounds
    assert tally.wrong == [], tally.page(0)
