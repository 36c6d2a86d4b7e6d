from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vidistill.storage.measuring import Cost, peak_memory_bytes

SIZE = 100 << 20


def grow() -> None:
    """Take 100 MiB and give them back."""
    assert np.ones(SIZE, dtype=np.uint8)[-1] == 1


@pytest.fixture
def resettable():
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        pytest.skip(f"this system does not reset the peak of a process: {error}")


def test_seconds():
    with Cost() as cost:
        time.sleep(0.05)
    assert 0.05 <= cost.seconds < 1


def test_the_peak_is_that_of_the_work_not_of_what_went_before(resettable):
    with Cost() as large:
        grow()
    with Cost() as small:
        pass
    assert large.peak_memory_bytes - small.peak_memory_bytes > 0.9 * SIZE


def test_stages_that_overlap_share_their_peak(resettable):
    with Cost() as outer:
        grow()
        with Cost() as inner:
            pass
    with Cost() as after:
        pass
    assert outer.peak_memory_bytes - inner.peak_memory_bytes > 0.9 * SIZE
    with Cost() as outer, Cost() as inner:
        grow()
    assert outer.peak_memory_bytes == inner.peak_memory_bytes > after.peak_memory_bytes + 0.9 * SIZE


def test_the_cost_of_what_failed_is_known():
    cost = Cost()
    with pytest.raises(ZeroDivisionError), cost:
        _ = 1 / 0
    assert cost.seconds > 0
    assert 10 << 20 < cost.peak_memory_bytes <= peak_memory_bytes() + (1 << 20)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc keeps what is freed")
def test_memory_kept_from_an_earlier_stage_is_not_counted(resettable):
    """In a process that keeps what it frees, as those that train do."""
    code = (
        "import numpy as np; from vidistill.models.compute import keep_freed_memory;"
        "from vidistill.storage.measuring import Cost;"
        "assert keep_freed_memory(); np.ones(200 << 20, np.uint8);\n"
        "with Cost() as cost: pass\n"
        "print(cost.peak_memory_bytes)"
    )
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    bare = subprocess.run(
        [sys.executable, "-c", code.replace("200 << 20", "1")], capture_output=True, text=True, check=True
    )
    assert int(started.stdout) < int(bare.stdout) + (50 << 20)
