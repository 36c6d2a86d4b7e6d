"""The sprites as a stage: rendered once for their parameters, kept in the store as video files."""

from __future__ import annotations

from vidistill.tasks.stage import Job, Work, stage
from vidistill.tasks.videos.sprites import SpritesParameters, render_sprites


def sprites_job(parameters: SpritesParameters) -> Job:
    return sprites(parameters, label="render sprites")


@stage("sprites", version=2)  # 2: files are named for their scene
def sprites(work: Work) -> None:
    render_sprites(work.folder, SpritesParameters.model_validate(work.job.parameters), work.progress)
