"""A store that is filled in stages: a template first, then regions, with a ledger of what is done.

Workers write whole chunks (zarr's local store renames a finished file into place) and then tick off
the task, so that a run that dies loses the tasks in flight and nothing else.  The ledger is a group
of the store, one array per stage and one chunk per task, until the store is whole.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from dask.base import compute
from dask.diagnostics.progress import ProgressBar
from numpy.typing import NDArray
from zarr.abc.store import Store

from .conventions import AXES, StoreError, listing
from .encoding import encode
from .lazy import machine
from .store import (
    LEDGER,
    StorePath,
    begin,
    check_writable,
    clear,
    finish,
    is_free,
    place_of,
    reach,
    root_attrs,
    stamp,
    sweep,
)
from .store import alone as alone

if TYPE_CHECKING:
    from rich.console import Console


def create(
    tree: xr.DataTree,
    path: StorePath,
    *,
    plan: Mapping[str, Any],
    stages: Mapping[str, int],
    title: str,
) -> None:
    """Write the template of a store: all metadata, and the values of what is not lazy.

    Parameters
    ----------
    tree : DataTree
        As the store will be.  Lazy variables are left to the stages.
    path : path or URL
        Where nothing is yet.
    plan : dict
        What decides the numbers: a run goes on only if its plan is this one.
    stages : dict of str to int
        Number of tasks of each stage.
    title : str
    """
    plain, encoding = encode(tree, level=3)
    attrs = {**stamp(plain, path, title), "complete": False}
    # A template that was cut short goes; `state` refused everything else.
    if root_attrs(path) is not None:
        clear(place_of(path))
    begin(plain, path, encoding, attrs, overwrite=True)
    root = zarr.open_group(_writable(path), mode="r+")
    ledger = root.require_group(LEDGER)
    for stage, n in stages.items():
        ledger.create_array(
            stage,
            shape=(n,),
            chunks=(1,),
            dtype=np.uint8,
            fill_value=0,
            compressors=None,
            dimension_names=(f"{stage}_task",),
            attributes={"long_name": "1 for a task that is done"},
        )
    # Last: without a plan, a template was cut short and is written anew.
    root.update_attributes({"cosmofields": {**attrs["cosmofields"], "plan": dict(plan)}})


def digest(*parts: bytes) -> str:
    """Short name of content, for a plan."""
    made = hashlib.sha256()
    for part in parts:
        made.update(part)
    return made.hexdigest()[:16]


def rows(table: xr.Dataset, names: Sequence[str]) -> Iterator[bytes]:
    """Those columns that a catalogue in memory has, for :func:`digest`."""
    for name in names:
        if name in table:
            yield np.ascontiguousarray(table[name].values).tobytes()


def moments(field: xr.DataArray) -> Iterator[bytes]:
    """Sums and coordinates by which to know a painted field again, whatever its chunks."""
    waves = [xr.DataArray(np.cos(np.arange(field.sizes[axis])), dims=axis) for axis in AXES]
    sums = [(field**2).sum(AXES), *((field * wave).sum(AXES) for wave in waves)]
    for total in compute(*sums):
        yield " ".join(f"{value:.3g}" for value in np.ravel(total)).encode()
    for name in ("share", "shot_noise"):
        yield np.asarray(field[name]).tobytes()


def plan_of(path: StorePath) -> dict[str, Any] | None:
    """Plan of the store at ``path``; None if there is no store, or one without a plan."""
    found = (root_attrs(path) or {}).get("cosmofields")
    return dict(found["plan"]) if isinstance(found, Mapping) and "plan" in found else None


def state(path: StorePath, plan: Mapping[str, Any]) -> str:
    """What is at ``path``: ``"nothing"``, a store of this plan that is ``"begun"`` or ``"whole"``.

    Files that a call that was killed had begun are removed from a store that is begun.

    Raises
    ------
    StoreError
        If the path holds something else, or a store of another plan; it names what differs.
    """
    place = place_of(path)
    check_writable(place)
    if place.kind in ("zip", "icechunk"):
        raise StoreError(
            f"'{path}' is not filled in parts, as a long job does. Give a folder or s3://, and "
            f"copy the whole store: write_store(open_store(folder), '{path}')"
        )
    attrs = root_attrs(path)
    if attrs is None:
        if not is_free(place):
            raise StoreError(
                f"'{path}' is taken by something that is no cosmofields store, so it is left "
                "alone. Choose another path, or remove it yourself"
            )
        return "nothing"
    there = plan_of(path)
    if there is None:
        if "cosmofields" in attrs and not attrs.get("complete"):
            return "nothing"  # a template that was cut short
        raise StoreError(
            f"'{path}' is a store that `reconstruct` (in the shell: cosmofields predict) did not "
            "write. Choose another path, or remove it yourself"
        )
    wrong = [
        f"{key} is {there.get(key)!r} there, {plan.get(key)!r} in this call"
        for key in dict.fromkeys([*plan, *there])
        if plan.get(key) != there.get(key)
    ]
    if wrong:
        raise StoreError(
            f"'{path}' holds another reconstruction: {listing(wrong)}. Make the same call to go on "
            "with it, choose another path, or remove it yourself"
        )
    if attrs.get("complete") is True:
        return "whole"
    if place.local:
        sweep(place.local)
    return "begun"


def pending(path: StorePath, stage: str) -> list[int]:
    """Tasks of a stage that are not ticked off."""
    if "filled" in (root_attrs(path) or {}).get("cosmofields", {}):
        return []  # all were, and the last call died while it finished the store
    ledger = np.asarray(read(path, f"{LEDGER}/{stage}"))
    return [int(i) for i in np.flatnonzero(ledger == 0)]


def tick(path: StorePath, stage: str, task: Any, done: int = 1) -> None:
    """Say that a task is done: what it wrote is on disk; or (0) that it is to be done again."""
    zarr.open_array(_writable(path), path=f"{LEDGER}/{stage}", mode="r+")[task] = done


def close(path: StorePath, writers: Mapping[str, str]) -> None:
    """Remove the ledger and say that the store is whole.

    Parameters
    ----------
    path : path or URL
    writers : dict of str to str
        Stage that writes each array.

    Raises
    ------
    StoreError
        If a chunk that was written is gone: its stage is to be done again.
    """
    target = _writable(path)
    root = zarr.open_group(target, mode="r+")
    made: dict[str, Any] = dict(root.attrs["cosmofields"])  # type: ignore[arg-type]
    if "filled" not in made:
        lost = []
        for name, stage in writers.items():
            array = read(path, name)
            if array.nchunks_initialized < array.nchunks:
                tick(path, stage, slice(None), done=0)
                lost.append(name)
        if lost:
            raise StoreError(f"'{path}' has lost chunks of {listing(lost)}: make the call again")
        # From here on the ledger may be there, or parts of it.
        root.update_attributes({"cosmofields": {**made, "filled": True}})
    zarr.create_group(target, path=LEDGER, overwrite=True, zarr_format=3)
    del zarr.open_group(target, mode="r+")[LEDGER]
    finish(path)


def _writable(path: StorePath) -> Store:
    return reach(place_of(path), write=True)


class Target:
    """An array of a store to write regions of: opened in the task that writes, whichever worker's.

    Parameters
    ----------
    path : path or URL
        Of the store.
    name : str
        Of the array, e.g. ``"linear/velocity"``.
    """

    def __init__(self, path: StorePath, name: str) -> None:
        self.path = path
        self.name = name

    def __setitem__(self, window: Any, values: NDArray[Any]) -> None:
        """Write whole chunks, also such as hold zeros alone: one that is not there was lost."""
        array = zarr.open_array(_writable(self.path), path=self.name, mode="r+")
        array.with_config({"write_empty_chunks": True})[window] = values


def read(path: StorePath, name: str) -> Any:
    """Array of a store that may not be whole yet, to be read by regions."""
    return zarr.open_array(reach(place_of(path)), path=name, mode="r")


def open_group(path: StorePath, group: str) -> xr.Dataset:
    """Group of a store that may not be whole yet, lazily."""
    store: Any = reach(place_of(path))  # xarray's hints know paths only
    return xr.open_zarr(store, group=group, consolidated=False, chunks={})


def write(path: StorePath, group: str, ds: xr.Dataset, names: Sequence[str]) -> Any:
    """Delayed: write the lazy variables ``names`` of a Dataset, whole chunk by whole chunk."""
    places = [f"{group}/{name}" for name in names]
    arrays = [
        ds[name].data.rechunk(read(path, place).chunks)
        for name, place in zip(names, places, strict=True)
    ]
    # dask's stubs know arrays only, though it asks for no more than __setitem__.
    targets: Any = [Target(path, place) for place in places]
    return da.store(arrays, targets, lock=False, compute=False)


def run(tasks: Sequence[Any], *, progress: bool, at_once: int | None = None) -> None:
    """Compute delayed tasks for what they do: on threads, or on a client's workers.

    Parameters
    ----------
    tasks : sequence of delayed
    progress : bool
        Show a bar.
    at_once : int, optional
        On threads, tasks that may have begun: an interrupt does not call them back.
    """
    if not machine().remote:
        some = {} if at_once is None else {"num_workers": at_once}
        with ProgressBar(out=sys.stderr) if progress else nullcontext():
            compute(*tasks, **some)
        return
    import distributed

    client = distributed.default_client()
    futures = client.compute(list(tasks))
    try:
        if progress:
            with redirect_stdout(sys.stderr):
                distributed.progress(futures, notebook=False)
        client.gather(futures)
    except BaseException:
        client.cancel(futures)  # or the workers would go on without us
        raise


def bars() -> Console:
    """Where bars go: standard error.  In Jupyter as text, which needs no widgets of rich's."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_jupyter:
        return console
    return Console(file=sys.stderr, force_jupyter=False, force_terminal=True, width=80)


@contextmanager
def timed(say: Console, what: str) -> Iterator[None]:
    """Spinner while a stage runs, and a line with its time when it is done."""
    started = time.perf_counter()
    with say.status(f"{what} ...") if say.is_terminal else nullcontext():
        yield
    say.print(f"  {time.perf_counter() - started:5.1f} s  {what}", highlight=False, markup=False)
