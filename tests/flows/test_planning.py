"""What a plan knows of a job's work before anything like it was measured."""

from __future__ import annotations

from typing import Any

import pytest

from vidistill.flows.planning import work_units
from vidistill.tasks.generate.autoencoder import AutoencoderParameters
from vidistill.tasks.generate.diffusion import LatteParameters
from vidistill.tasks.generate.sample import PartParameters, SamplerParameters
from vidistill.tasks.learning.experts import ExpertJobParameters, ExpertParameters
from vidistill.tasks.learning.teacher import TeacherParameters
from vidistill.tasks.match.mtt import MTTParameters
from vidistill.tasks.videos.decode import DecodeParameters


def distil(**options: Any) -> dict[str, Any]:
    return {"options": MTTParameters(**options).model_dump(), "ipc": 5, "labels": list(range(10))}


@pytest.mark.parametrize(
    ("kind", "once", "twice"),
    [
        ("teacher", *(TeacherParameters(epochs=epochs).model_dump() for epochs in (10, 20))),
        (
            "expert",
            *(
                ExpertJobParameters(expert=ExpertParameters(epochs=epochs), seed=0).model_dump()
                for epochs in (10, 20)
            ),
        ),
        ("autoencoder", *(AutoencoderParameters(steps=steps).model_dump() for steps in (10, 20))),
        ("latte", *(LatteParameters(steps=steps).model_dump() for steps in (10, 20))),
        (
            "pool-part",
            *(
                PartParameters(sampler=SamplerParameters(), seed=0, label=0, first=0, count=count).model_dump()
                for count in (5, 10)
            ),
        ),
        ("distilled", distil(iterations=10), distil(iterations=20)),
        ("distilled", distil(syn_steps=5), distil(syn_steps=10)),
    ],
)  # fmt: skip
def test_twice_the_work_is_expected_to_take_twice_as_long(
    kind: str, once: dict[str, Any], twice: dict[str, Any]
) -> None:  # fmt: skip
    decode = DecodeParameters()
    assert work_units(kind, twice, decode) == pytest.approx(2 * work_units(kind, once, decode))
    assert work_units(kind, once, decode) > 1e6


@pytest.mark.parametrize(
    ("kind", "nothing", "least"),
    [
        ("distilled", distil(iterations=0), distil(iterations=1)),  # the set that a method starts from
        ("latte", LatteParameters(steps=0).model_dump(), LatteParameters(steps=1).model_dump()),
    ],
)
def test_no_training_at_all_is_work_too_so_that_its_seconds_have_a_rate(
    kind: str, nothing: dict[str, Any], least: dict[str, Any]
) -> None:
    decode = DecodeParameters()
    assert work_units(kind, nothing, decode) == work_units(kind, least, decode) > 0
