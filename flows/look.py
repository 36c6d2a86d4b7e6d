"""What artifacts are, made or not, and the clips of a data set: thousands of blocks, which are counted once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vidistill.flows.passes import Data
from vidistill.storage.store import ArtifactRef, Manifest


@dataclass(frozen=True)
class Look:
    """Manifests by `find`, which gives None where nobody knows one; `flips`: clips of the data set may be mirrored."""

    find: Callable[[ArtifactRef], Manifest | None]
    flips: bool = False
    _counted: dict[ArtifactRef, Data] = field(default_factory=dict, init=False)

    def known(self, ref: ArtifactRef) -> Manifest:
        """An artifact's manifest.

        Raises:
            LookupError: nobody knows it.
        """
        found = self.find(ref)
        if found is None:
            raise LookupError(str(ref))
        return found

    def data(self, ref: ArtifactRef) -> Data:
        """The clips of a `clips` or `pool` artifact.

        Raises:
            LookupError: nobody knows what they were made of.
        """
        if ref not in self._counted:
            self._counted[ref] = self._count(ref)
        return self._counted[ref]

    def _count(self, ref: ArtifactRef) -> Data:
        made = self.known(ref)
        blocks = [self.known(block) for block in made.inputs["blocks"]]
        if made.kind == "pool":
            own = self.data(made.inputs["clips"][0])
            parts = [self.known(part).parameters for part in made.inputs["latents"]]
            wanted = made.parameters["clips_a_class"]
            clips = sum(min(part["count"], wanted - part["first"]) for part in parts)
            return Data(clips, 1, own.frames, own.size)
        sampling = blocks[0].parameters["sampling"]
        clips = sum(len(block.parameters["videos"]) for block in blocks)
        return Data(clips, sampling["views"], sampling["frames"], sampling["size"], self.flips)
