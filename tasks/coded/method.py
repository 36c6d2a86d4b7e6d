"""Coded: real clips kept as compressed video, as many as a budget of bytes has room for. Our own method.

A clip of 8×56×56 takes 75 KB raw and about 1 KB in AV1 at a quantiser of 50, so that the bytes of one raw clip a class
keep tens of coded ones. It is compression, and gives no privacy.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import Field

from vidistill.storage.clips import Clips
from vidistill.storage.distilled import DistilledSet
from vidistill.storage.errors import RequestError
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.storage.streams import WORST_CRF
from vidistill.tasks.coded.keep import Budget, Coding, Kept, as_set, kept, psnr
from vidistill.tasks.coded.pick import Pick, ordered
from vidistill.tasks.coded.search import Point, SearchParameters, TrialParameters, best, load_grid, search_job
from vidistill.tasks.learning.rows import enough
from vidistill.tasks.learning.training import Precision
from vidistill.tasks.methods import Given, Material, Method

USUAL_CRF, COARSER = 50, (55, 60, WORST_CRF)


class CodedParameters(Parameters):
    """What is kept, and how finely.

    A budget in kilobytes counts all that a student needs: headers, index, labels, and the logits of the recipe `soft`.
    Frames and their interval are those of the decoded clips.
    """

    pick: Pick = Field("random", description="Which clips of a class are kept first.")
    crf: int | None = Field(
        None,
        ge=1,
        le=WORST_CRF,
        description="Quantiser; the search's where none is given, 50 where there is no search.",
    )
    preset: int = Field(4, ge=0, le=12, description="The encoder's effort: 0 is the most.")
    scale: float = Field(1.0, gt=0, le=1, description="Side of the coded picture as a share; scaled up when decoded.")
    views: int = Field(
        1, ge=1, description="Labelled views a clip: the picture, and parts of it with logits of their own."
    )
    view_scale: float = Field(0.4, gt=0, le=1, description="Smallest area share of such a part.")
    teachers: int = Field(1, ge=1, description="Teachers whose mean probability labels the clips, a seed each.")
    search: SearchParameters | None = Field(
        SearchParameters(),
        description="How quantiser and scale are searched for a budget in kilobytes; null: not at all.",
    )
    precision: Precision = "auto"


class Coded(Method):
    """As many coded clips a class as fit, the same number of each, chosen by `pick`."""

    budgets = ("ipc", "kb")
    needs = ("teacher",)
    recipes = ("hard", "soft")
    Parameters = CodedParameters

    def inputs(self, given: Given) -> dict[str, list[ArtifactRef]]:
        made = {} if self.parameters.pick == "random" else {"teacher": [given.add(given.teacher)]}
        if given.kb is None or self.parameters.search is None or self.parameters.crf is not None:
            return made
        named = ("pick", "preset", "views", "view_scale", "search")
        trial = TrialParameters(
            kb=given.kb, recipe=given.recipe, **{name: getattr(self.parameters, name) for name in named}
        )
        soft = self.labellers(given) if given.recipe.labels == "soft" else []
        return made | {"search": [given.add(search_job(given.train, soft or made.get("teacher", []), trial))]}

    def labellers(self, given: Given) -> list[ArtifactRef]:
        """The teachers whose mean labels the set: the run's own, and others that began from other seeds."""
        job, own = given.teacher, given.teacher.parameters
        return [
            given.add(job.model_copy(update={
                "parameters": own | {"seed": own["seed"] + number},
                "label": f"{job.label} {number + 1}" if number else job.label,
            }))
            for number in range(self.parameters.teachers)
        ]  # fmt: skip

    def distil(self, material: Material) -> DistilledSet:
        options, clips = self.parameters, material.clips
        budget = Budget(material.kb, material.ipc, len(material.labels), options.views, material.soft)
        network = cache(material.teacher)
        orders = []
        for done, label in enumerate(material.labels):
            rows_N = enough(clips, label, material.ipc)
            orders.append(ordered(options.pick, clips, rows_N, material.seed, network, material.device))
            material.progress(done + 1, len(material.labels))
        found, coding, grid = self._kept(clips, orders, budget, material)
        made = as_set(clips, found, options.views, options.view_scale, material.seed)
        facts = coding.model_dump() | {
            "codec": found.stream.codec,
            "clips": len(found.rows_N),
            "psnr": psnr(clips.read(found.rows_N), made.clips_NTHWC[:: options.views]),
        }
        made.facts.update({"coded": facts, "search": [point.model_dump() for point in grid]})
        return made

    def _kept(
        self, clips: Clips, orders: list[Any], budget: Budget, material: Material
    ) -> tuple[Kept, Coding, list[Point]]:
        """Kept as the search says, or as the parameters do; coarser only where not one clip a class fits."""
        options = self.parameters
        coding = Coding(crf=options.crf or USUAL_CRF, preset=options.preset, scale=options.scale)
        grid = [point for folder in material.inputs("search") for point in load_grid(folder)]
        if grid:
            chosen = best(grid)
            coding = coding.model_copy(update={"crf": chosen.crf, "scale": chosen.scale})
        coarser = [coding.model_copy(update={"crf": crf}) for crf in COARSER if crf > coding.crf]
        for one in [coding, *([] if options.crf else coarser)]:
            try:
                return kept(clips, orders, one, budget), one, grid
            except RequestError as error:
                problem = error
        raise problem
