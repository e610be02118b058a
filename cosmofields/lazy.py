"""How much a machine can hold, and whole-box kernels that stay lazy on dask arrays.

Two ways lead through each global operation: in memory with all cores, or out of core with Dask.
:func:`fits` chooses, by the memory of :func:`machine`; both ways give the same numbers.  Settings
are dask's own: ``dask.config.set({"cosmofields.memory": "6 GB"})`` or the environment variable
``DASK_COSMOFIELDS__MEMORY``.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import dask
import dask.array as da
import numpy as np
from dask.utils import format_bytes, parse_bytes

from .conventions import CosmofieldsError

# A chunk of 64^3 float32 cells is 1 MB, and a whole number of the networks' coarsest cells.
CHUNK = 64
# A Dask worker spills at 0.6 and pauses at 0.8 of its limit, and holds chunks besides.
WORKER_SHARE = 0.5
log = logging.getLogger("cosmofields")


class Machine(NamedTuple):
    """Where a graph will run: processes, threads of each, bytes that each may fill.

    ``remote``: they are the workers of a client, not this process.
    """

    workers: int
    threads: int
    memory: int
    remote: bool = False


def machine() -> Machine:
    """The workers of the current ``distributed.Client``, or this process.

    Raises
    ------
    CosmofieldsError
        If ``cosmofields.memory`` in dask's configuration is no amount of memory, or the client has
        no worker yet, whose memory could be asked for.
    """
    workers = _workers()
    if workers is not None and not workers:
        raise CosmofieldsError(
            "The Dask client has no worker yet: client.wait_for_workers(1) first, or more of them"
        )
    if workers:
        limits = [w["memory_limit"] for w in workers if w["memory_limit"]]
        share = int(WORKER_SHARE * min(limits)) if limits else _available() // len(workers)
        found = Machine(len(workers), min(w["nthreads"] for w in workers), share, remote=True)
    else:
        found = Machine(1, n_threads(), _available() // 2)
    budget = dask.config.get("cosmofields.memory", None)
    if budget is None:
        return found
    try:
        given = parse_bytes(budget)
    except (AttributeError, TypeError, ValueError):
        given = 0
    if given <= 0:
        raise CosmofieldsError(f"memory={budget!r}; expected an amount such as '6 GB'")
    return found._replace(memory=min(given, found.memory) if workers else given)


def fits(nbytes: float, what: str) -> bool:
    """Whether ``what``, which needs ``nbytes`` in one process, is to run in memory; logged."""
    allowed = machine().memory
    inside = nbytes <= allowed
    how = "in memory" if inside else "out of core"
    need = format_bytes(int(nbytes))
    log.info("%s: %s (needs %s of %s)", what, how, need, format_bytes(allowed))
    return inside


def n_threads() -> int:
    """Threads for a kernel that runs here: those of its Dask worker, or the cores we may use."""
    distributed = sys.modules.get("distributed")
    if distributed is not None:
        try:
            return int(distributed.get_worker().state.nthreads)
        except ValueError:
            pass  # no worker runs this
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _workers() -> list[dict[str, Any]] | None:
    """What the scheduler says of the workers that dask would use; None for local threads."""
    distributed = sys.modules.get("distributed")
    if distributed is None or dask.config.get("scheduler", None) != "dask.distributed":
        return None
    try:
        client = distributed.default_client()
    except ValueError:
        return None
    return list(client.scheduler_info(n_workers=-1)["workers"].values())


def _available() -> int:
    """Bytes that this process could fill: the machine's, or what its control group leaves."""
    import psutil

    free = [psutil.virtual_memory().available]
    try:
        name = Path("/proc/self/cgroup").read_text().split("::/")[-1].strip()
        group = Path("/sys/fs/cgroup", name)
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free.append(int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # not Linux, or no control group
    return max(min(free), 0)


def chunk_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Chunks of a field: at most 64 cells along the last three axes, one entry along others."""
    lead = len(shape) - 3
    return tuple(1 if i < lead else min(CHUNK, n) for i, n in enumerate(shape))


def whole_box(
    kernel: Callable[..., np.ndarray],
    *arrays: Any,
    shape: Sequence[int],
    dtype: Any = np.float32,
) -> Any:
    """Call ``kernel(*arrays)``, which needs whole arrays, now or (for a dask input) later.

    Parameters
    ----------
    kernel : callable
        Takes numpy arrays, returns one of ``shape`` and ``dtype``.
    *arrays : numpy or dask arrays
    shape, dtype
        Of the result; a lazy one is rechunked to :func:`chunk_shape`.

    Returns
    -------
    numpy.ndarray or dask.array.Array
    """
    if not any(isinstance(array, da.Array) for array in arrays):
        return kernel(*map(np.asarray, arrays))
    task = dask.delayed(kernel, pure=True)(*arrays)
    return da.from_delayed(task, tuple(shape), dtype=dtype).rechunk(chunk_shape(shape))
