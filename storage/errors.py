"""Every error of vidistill, each also the built-in that a caller would expect."""

from __future__ import annotations


class VidistillError(Exception):
    """What vidistill raises on purpose: its message is one sentence that a user can act on."""


class RequestError(VidistillError, ValueError):
    """The request was wrong: exit code 2, never retried."""


class RunError(VidistillError, RuntimeError):
    """The run failed: exit code 1."""


class TransientError(RunError):
    """What failed for no fault of the request: the same run again may do."""


class DivergedError(RunError):
    """What was trained came to numbers that are of no use."""


class RowsFailed(RunError):
    """Some rows of a report could not be made; the report is written, and names them. `causes` are why."""

    causes: tuple[VidistillError, ...] = ()


class Stopped(RunError):
    """Somebody asked the run to stop."""


class StoreError(TransientError, OSError):
    """The store could not be read or written."""


class NotMade(StoreError):
    """An artifact could not be made, because the store could not be read or written."""


class StoreUnreachable(StoreError):
    """The store did not answer, or not with what it has: that may pass."""


class ArtifactNotFound(TransientError, FileNotFoundError):
    """No such artifact is in the store."""


class ArtifactDamaged(TransientError, OSError):
    """An artifact's files are not those that its manifest describes."""
