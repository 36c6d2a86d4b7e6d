"""A user's own matching method, in a file of its own, found by `FILE.py:CLASS`: it keeps the contract and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from method_contract import Bench, MethodContract
from resuming import killed_and_whole

from vidistill.storage.errors import RunError
from vidistill.tasks.methods import find_method

FILE = Path(__file__).with_name("own_matching.py")
SPEC = f"{FILE}:Motion"
OPTIONS: dict[str, Any] = {"iterations": 3, "batch_real": 2}


class TestMotion(MethodContract):
    spec = SPEC
    options: ClassVar = OPTIONS


def run(bench: Bench, **changes: Any) -> list[float]:
    method = find_method(SPEC).method
    made = method(method.Parameters(**(OPTIONS | changes)))
    return made.distil(bench.material((0, 1, 2), 1, 0, made)).facts["loss"]


def test_it_fits_in_sixty_lines() -> None:
    assert len(FILE.read_text().splitlines()) < 60


def test_its_loss_falls(bench: Bench) -> None:
    """Beside clips that stay where they began: the networks and the real clips of an iteration are the same."""
    moved, still = (run(bench, iterations=15, lr=lr) for lr in (100, 1e-9))
    assert moved[0] == still[0]
    assert np.sum(moved[-5:]) < 0.95 * np.sum(still[-5:])


def test_it_resumes_without_a_line_of_its_own(bench: Bench) -> None:
    again, whole, steps = killed_and_whole(bench, SPEC, OPTIONS, 3)
    assert steps == [3]
    np.testing.assert_array_equal(again.clips_NTHWC, whole.clips_NTHWC)
    assert again.facts == whole.facts


def test_it_is_stopped_when_it_diverges(bench: Bench, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(FILE.read_text().replace("(total, learnt)", "(total * float('nan'), learnt)"))
    method = find_method(f"{broken}:Motion").method
    with pytest.raises(RunError, match=r"The loss is nan at step 0 .*learning rate"):
        method(method.Parameters(**OPTIONS)).distil(bench.material((0, 1, 2), 1, 0))
