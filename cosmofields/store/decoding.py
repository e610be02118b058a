"""Chunks decoded: what a codec finds wrong is said in an error of ours, which names the chunk."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import zarr
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.registry import register_pipeline

from ..conventions import CosmofieldsError, StoreError, listing
from .places import brief, unreachable


@dataclass(frozen=True)
class Decoding(BatchedCodecPipeline):
    """Zarr's way from the bytes of chunks to their values; each codec has errors of its own."""

    async def read_batch(self, batch_info: Iterable[Any], out: Any, drop_axes: Any = ()) -> Any:
        """Read some chunks, by default one at a time, into their places in ``out``."""
        batch = list(batch_info)
        try:
            # zarr from 3.2 on returns what it found.
            return await super().read_batch(batch, out, drop_axes)
        except (CosmofieldsError, MemoryError):
            raise
        except Exception as error:
            getters = [one[0] for one in batch]
            place = getattr(getattr(getters[0], "store", None), "place", "the store")
            keys = listing(getattr(getter, "path", "a piece of a shard") for getter in getters)
            if unreachable(error):
                raise StoreError(
                    f"'{place}': {keys} cannot be read ({brief(error)}). That says nothing of what "
                    "is stored; when it is mended, make the call again"
                ) from error
            raise StoreError(
                f"'{place}': {keys} cannot be decoded ({brief(error)}). Copy or write it again; "
                "cosmofields.verify finds all that is wrong"
            ) from error


register_pipeline(Decoding)
_NAME = f"{Decoding.__module__}.{Decoding.__qualname__}"
_OPENING = threading.RLock()


@contextmanager
def decoding() -> Iterator[None]:
    """Arrays that are opened in here are read by :class:`Decoding`, wherever they are sent.

    zarr's setting is one for all threads, so that they open one after the other.
    """
    with _OPENING, zarr.config.set({"codec_pipeline.path": _NAME}):
        yield
