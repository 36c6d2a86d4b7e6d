"""The jobs of `vidistill pool`; no Prefect."""

from __future__ import annotations

from vidistill.flows.experiment import Graph
from vidistill.flows.own import with_own
from vidistill.flows.parameters import SPRITES, PoolRequest
from vidistill.flows.planning import Plan, plan_data
from vidistill.flows.rows import check_size, training_videos
from vidistill.storage.files import expanded
from vidistill.tasks.generate.pool import pool_of
from vidistill.tasks.generate.quality import quality_job
from vidistill.tasks.learning.teacher import teacher_job
from vidistill.tasks.methods import Given
from vidistill.tasks.stage import Runtime
from vidistill.tasks.videos.decode import training_clips
from vidistill.tasks.videos.index import IndexTable, index_job


def build_pool(request: PoolRequest, table: IndexTable) -> Graph:
    """All jobs of a pool, its quality last.

    Raises:
        RequestError: a class has no training video, the clips are too small for the teacher, or see `pool_of`.
    """
    check_size(request, request.teacher.network)
    training_videos(table)
    graph = Graph()
    index = graph.add(index_job(table, request.index))
    train = training_clips(table, index, request.decode, graph.add)
    teacher = teacher_job(train, request.teacher)
    root = None if request.data == SPRITES else expanded(request.data)
    given = Given(index, train, teacher, table, request.decode, root, graph.add)
    made = pool_of(given, request.pool)
    graph.add(quality_job(made, train, graph.add(teacher)))
    return graph


def plan_pool(request: PoolRequest, runtime: Runtime) -> Plan:
    """Every job, with whether it is cached."""
    request, runtime = with_own(request, runtime)
    return plan_data(request, runtime, lambda settled, table, _: build_pool(settled, table))
