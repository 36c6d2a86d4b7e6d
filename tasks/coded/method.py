"""Coded: real clips kept as compressed video, as many as a budget of bytes has room for. Our own method.

A clip of 8×56×56 takes 75 kB raw and about 1 kB in AV1 at a quantiser of 50, so that the bytes of one raw clip a class
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
from vidistill.tasks.coded.allocate import allocated
from vidistill.tasks.coded.keep import (
    Budget,
    Coder,
    Coding,
    Footage,
    Kept,
    as_set,
    in_both,
    kept,
    kept_coarser,
    loss_of,
)
from vidistill.tasks.coded.pick import BY_FEATURES, Pick, ordered
from vidistill.tasks.coded.search import Found, SearchParameters, TrialParameters, load_search, search_job
from vidistill.tasks.learning.embedding import EMBEDDINGS, load_embeddings, train_embeddings
from vidistill.tasks.learning.rows import enough
from vidistill.tasks.learning.training import Precision
from vidistill.tasks.learning.trial import fifths
from vidistill.tasks.methods import Given, Material, Method
from vidistill.tasks.videos.decode import training_clips

USUAL_CRF = 50


class CodedParameters(Parameters):
    """What is kept, and how finely.

    A budget in kilobytes counts all that a student needs: headers, index, labels, and the logits of the recipe `soft`.
    Quantiser, scale and frames that are not given are searched for, or usual where there is no search; then as many
    clips are kept as have room at that quantiser, and what is left is spent on a finer one. A quantiser that is given
    stays, and nothing is searched.
    """

    pick: Pick = Field("random", description="Which clips of a class are kept first.")
    crf: int | None = Field(None, ge=1, le=WORST_CRF, description="Quantiser of all clips; usual: 50.")
    per_clip: bool = Field(
        False, description="Quantisers of their own, that the teacher loses least of the clips in the same bytes."
    )
    together: bool = Field(
        False,
        exclude_if=lambda together: not together,
        description="All clips in one stream, each predicted from those before it.",
    )
    even: bool = Field(
        False,
        exclude_if=lambda even: not even,
        description="Every frame at the quantiser, the first as well: more of what moves, for the front `centred`.",
    )
    preset: int = Field(4, ge=0, le=12, description="The encoder's effort: 0 is the most.")
    scale: float | None = Field(
        None, gt=0, le=1, description="Side of the coded picture as a share, scaled up when decoded; usual: 1."
    )
    frames: float | None = Field(
        None,
        gt=0,
        description="Frames kept a clip as a share; usual: 1. 0.5: every second, and means between them. 2: frames at "
        "half the interval, of which a student sees the even or the odd ones, drawn at every step.",
    )
    views: int = Field(
        1, ge=1, le=255, description="Labelled views a clip: the picture, and parts of it with logits of their own."
    )
    view_scale: float = Field(0.4, gt=0, le=1, description="Smallest area share of such a part.")
    search: SearchParameters | None = Field(
        SearchParameters(), description="How a budget in kilobytes is searched; null: not at all."
    )
    precision: Precision = "auto"

    @property
    def grid(self) -> SearchParameters | None:
        """The search, over what is not given; None where the quantiser is."""
        if self.search is None or self.crf is not None:
            return None
        given = {"scales": self.scale, "frames": self.frames}
        fixed = {name: (value,) for name, value in given.items() if value is not None}
        return self.search.model_copy(update=fixed | {"student": self.search.student.suited(self.search.network)})


class Coded(Method):
    """As many coded clips a class as fit, the same number of each, chosen by `pick`."""

    version = 2
    budgets = ("ipc", "kb")
    recipes = ("hard", "soft")
    Parameters = CodedParameters

    def inputs(self, given: Given) -> dict[str, list[ArtifactRef]]:
        options = self.parameters
        if options.together and options.per_clip:
            raise RequestError("coded.together has one quantiser, and coded.per_clip one a clip: choose one of them.")
        grid = None if given.kb is None else options.grid
        made = {"teacher": [given.add(given.teacher)]} if options.pick == "medium" or options.per_clip else {}
        if options.pick in BY_FEATURES:
            made |= {EMBEDDINGS: [train_embeddings(given, options.precision)]}
        made |= _dense(given, [options.frames or 1.0] if grid is None else list(grid.frames))
        if grid is None:
            return made
        try:
            fifths(given.table.of_split("train"), given.table.classes)
        except RequestError as error:
            raise RequestError(
                f"coded tries what to keep on a fifth of the training split, and {error}. Search nothing instead: "
                "coded.search=null."
            ) from error
        names = ("pick", "preset", "even", "views", "view_scale", "together")
        trial = TrialParameters(
            kb=given.kb, recipe=given.recipe, search=grid, **{name: getattr(options, name) for name in names}
        )
        needs = {"clips": [given.train]} | {name: refs for name, refs in made.items() if name != "teacher"}
        if options.pick == "medium" or given.recipe.labels == "soft":
            needs["teacher"] = [given.add(given.teacher)]
        return made | {"search": [given.add(search_job(needs, trial))]}

    def used(self, kb: float | None) -> CodedParameters:
        """Without the search, where there is none."""
        options: CodedParameters = self.parameters
        return options if kb and options.grid else options.model_copy(update={"search": None})

    @property
    def unmixed(self) -> str:
        return "its clips are compressed video, and mixed ones would be raw"

    def distil(self, material: Material) -> DistilledSet:
        options, clips = self.parameters, material.clips
        budget = Budget(material.kb, material.ipc, len(material.labels), options.views, material.soft)
        network, embeddings = cache(material.teacher), cache(lambda: load_embeddings(material.inputs(EMBEDDINGS)[0]))
        dense, orders = material.more_clips("dense"), []
        for done, label in enumerate(material.labels):
            there_N = in_both(clips, dense, clips.rows_of(label))
            rows_N = enough(clips, label, material.ipc, there_N)
            orders.append(ordered(options.pick, clips, rows_N, material.seed, network, embeddings, material.device))
            material.progress(done, len(material.labels))
        search = next((load_search(folder) for folder in material.inputs("search")), None)
        coder, found = self._kept(clips, dense, orders, budget, search)
        if options.per_clip:
            found = allocated(coder, found, budget, network(), material.device)
        made = as_set(clips, found, options.views, options.view_scale, material.seed)
        material.progress(len(material.labels), len(material.labels))
        facts = coder.coding.model_dump() | {
            "crf": sorted(set(found.crf_N.tolist())) if options.per_clip else int(found.crf_N[0]),
            "frames": coder.footage.frames,
            **({"together": True} if options.together else {}),
            "codec": found.stream.codec,
            "clips": len(found.rows_N),
            "psnr": loss_of(coder, found),
        }
        tried = [] if search is None else [point.model_dump() for point in search.points]
        made.facts.update({"coded": facts, "search": tried})
        return made

    def _kept(
        self, clips: Clips, dense: Clips | None, orders: list[Any], budget: Budget, search: Found | None
    ) -> tuple[Coder, Kept]:
        """Kept as the search says, or as the parameters do; coarser only where not one clip a class fits."""
        options = self.parameters
        crf, scale, frames = options.crf or USUAL_CRF, options.scale or 1.0, options.frames or 1.0
        if search is not None:
            crf, scale, frames = search.best.crf, search.best.scale, search.best.frames
        footage = Footage(clips, frames, dense)
        coder = Coder(footage, Coding(preset=options.preset, scale=scale, even=options.even), together=options.together)
        if options.crf:
            return coder, kept(coder, orders, crf, budget, finest=crf)
        made = kept_coarser(coder, orders, crf, budget)
        if search is not None and len(made.rows_N) < sum(map(len, orders)):  # those that were searched all had room
            coarse = kept_coarser(coder, orders, search.best.coarsest, budget)
            made = max(made, coarse, key=lambda one: len(one.rows_N))
        return coder, made


def _dense(given: Given, shares: list[float]) -> dict[str, list[ArtifactRef]]:
    """The same videos' clips of more frames at a smaller interval, where one of these shares of frames needs them.

    Raises:
        RequestError: a share is not every k-th frame, or not a whole number of the interval's parts.
    """
    decode, most = given.decode, max(shares)
    for share in shares:
        parts = (share, decode.interval / share, most / share) if share > 1 else (decode.frames * share, 1 / share)
        if any(abs(part - round(part)) > 1e-9 for part in parts):
            raise RequestError(
                f"coded.frames {share:g} does not divide {decode.frames} frames at an interval of {decode.interval}: "
                "take 0.5, 1, 2 or another share that does."
            )
    if most <= 1:
        return {}
    times = {"frames": round(decode.frames * most), "interval": round(decode.interval / most)}
    dense = decode.model_copy(update={**times, "views": 1})
    return {"dense": [training_clips(given.table, given.index, dense, given.add)]}
