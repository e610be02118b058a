"""A local cluster of single-threaded workers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def cluster(workers: int, memory: str) -> Iterator[None]:
    """``workers`` processes of one thread and ``memory`` each, as Dask's scheduler inside."""
    from distributed import Client, LocalCluster

    # It warns of every shuffle that begins and ends.
    quiet = {"dashboard_address": None, "silence_logs": logging.ERROR}
    size = {"n_workers": workers, "threads_per_worker": 1, "memory_limit": memory}
    with LocalCluster(**size, **quiet) as local, Client(local):
        yield
