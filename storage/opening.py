"""From a path or a URL to a store."""

from __future__ import annotations

import os
import re
from pathlib import Path

from platformdirs import user_data_path

from vidistill.storage.errors import RequestError, VidistillError
from vidistill.storage.files import expanded
from vidistill.storage.store import Store

VARIABLE = "VIDISTILL_STORE"


def default_location() -> str:
    """`VIDISTILL_STORE`, or one store a user, so that runs from any folder share it."""
    return os.environ.get(VARIABLE) or str(user_data_path("vidistill") / "store")


def absolute(location: str) -> str:
    """The same store for processes that work in other folders: a folder's whole path, or a URL."""
    location = location.removeprefix("file://")
    return location if "://" in location else str(expanded(location).absolute())


def open_store(location: str) -> Store:
    """The store at a path or a URL (`s3://bucket/prefix`, or any other that fsspec knows).

    Raises:
        RequestError: the URL's protocol is not known, or what it needs is not installed.
    """
    location = absolute(location)
    if "://" not in location:
        return Store(Path(location))
    from vidistill.storage.remote import RemoteStore

    if not location.partition("://")[2].strip("/"):
        raise RequestError(f"The store {location} names no bucket: write s3://BUCKET/FOLDER.")
    if "@" in location.partition("://")[2].partition("/")[0]:
        raise RequestError(
            f"The store {re.sub('//[^/]*@', '//…@', location)} holds a password in its address, which logs would show: "
            "give it by the environment or a profile."
        )
    try:
        return RemoteStore(location)
    except VidistillError:
        raise
    except (ImportError, ValueError, OSError) as error:
        raise RequestError(f"The store {location} cannot be opened: {error}.") from error
