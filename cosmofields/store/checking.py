"""A store read from end to end, and what is wrong with it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import dask
from dask.diagnostics.progress import ProgressBar

from ..conventions import StoreError
from .opened import Opened
from .places import StorePath, brief, place_of, unreachable
from .reading import Found, Stored, check_whole, chunks_of, grid_of, in_ledger, look, stored
from .vetting import digest, read_json

_TASKS = 2000  # for a bar that moves, and a graph that stays small
_LOST = 1000  # chunks of an array, of which each is named


class Damage(NamedTuple):
    """One thing that is wrong: the array (``""`` for the store), the key of its chunk, and what."""

    array: str
    chunk: str
    what: str

    def __str__(self) -> str:
        where = f"{self.array or 'the store'}, {self.chunk}" if self.chunk else self.array
        return f"{where or 'the store'}: {self.what}"


def verify(
    path: StorePath,
    *,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> list[Damage]:
    """Read every chunk of a store, and say what is damaged, lost or of the wrong size.

    Parameters
    ----------
    path : path or URL
        Wherever :func:`open_store` opens one.
    storage_options : dict, optional
        Of an object store; see :func:`open_store`.
    progress : bool
        Show a progress bar on standard error.

    Returns
    -------
    list of Damage
        Empty for a sound store.  Each has ``array``, ``chunk`` (its key in the store, such as
        ``density/c/0/1/0``) and ``what`` is wrong.

    Raises
    ------
    StoreError
        If it cannot be opened at all, is not whole, or cannot be read for another reason than what
        is stored: too many open files, no permission, a server that does not answer.

    Notes
    -----
    Eager: the whole store is read, on the scheduler that dask has.  A flipped bit shows in the
    CRC-32C with which each chunk ends, and in metadata by their SHA-256.  Chunks of a store that
    others wrote without checksums can only be seen to be there, and to decode.
    """
    found = look(place_of(path, storage_options))
    check_whole(found)
    there = stored(found)
    damages = list(_metadata(found, there or {}))
    whole = found.attrs.get("complete") is True
    chosen: dict[str, Sequence[int]] = {}
    for name, array in found.arrays.items():
        n = chunks_of(array)
        numbers: Sequence[int] = range(n)
        if there is not None and n - there[name].n > (_LOST if whole else 0):
            # No more than what there is, whatever the shape says; what is not there in a store
            # that does not say that it is whole is no damage.
            numbers = sorted({*there[name].numbers})
            if whole:
                damages.append(Damage(name, "", f"{n - len(numbers):,} of {n:,} chunks are lost"))
        if not in_ledger(name):
            chosen[name] = numbers
    size = max(1, sum(map(len, chosen.values())) // _TASKS)
    tasks = [
        dask.delayed(_read)(name, found.arrays[name], part)
        for name, numbers in chosen.items()
        for part in _parts(numbers, size)
    ]
    with ProgressBar(out=sys.stderr) if progress else nullcontext():
        for some in dask.compute(*tasks):
            damages += some
    return damages


def _parts(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Numbers of the chunks of an array, so many a task."""
    return (numbers[start : start + size] for start in range(0, len(numbers), size))


def _read(name: str, array: Any, part: Sequence[int]) -> list[Damage]:
    """Decode some chunks of an array."""
    damages = []
    grid, pieces = grid_of(array), array.shards or array.chunks
    for number in part:
        rest, at = number, []
        for n in reversed(grid):
            rest, i = divmod(rest, n)
            at.append(i)
        at.reverse()
        window = tuple(
            slice(i * piece, (i + 1) * piece) for i, piece in zip(at, pieces, strict=True)
        )
        key = f"{name}/{array.metadata.encode_chunk_key(tuple(at))}"
        try:
            array[window]
        except Exception as error:  # each codec has errors of its own
            if unreachable(error) or unreachable(error.__cause__):
                raise
            lost = isinstance(error, StoreError) and "lost a chunk" in str(error)
            damages.append(
                Damage(name, key, "is lost" if lost else _what(error.__cause__ or error))
            )
    return damages


def _what(error: BaseException) -> str:
    said = brief(error)
    if "checksum" in said:
        return f"its bits have changed ({said})"
    return f"cannot be decoded ({said})"


def _metadata(found: Found, there: Mapping[str, Stored]) -> Iterator[Damage]:
    """What is wrong beside the chunks."""
    said = found.made.get("metadata_sha256")
    if said is not None and said != digest(found.documents):
        yield Damage("", "zarr.json", "metadata have changed since the store was written")
    if found.zarr_format == 3 and found.consolidated:
        assert isinstance(found.store, Opened)
        for name, document in found.documents.items():
            key = f"{name}/zarr.json"
            try:
                own = read_json(found.store._store, key, found.place) if name else document
            except StoreError as error:
                yield Damage(name, key, str(error))
                continue
            if own is None:
                yield Damage(name, key, "is lost")
                continue
            own.pop("consolidated_metadata", None)
            if own != document:
                yield Damage(name, key, "says something else than the root's zarr.json")
    for name, one in there.items():
        if one.beyond:
            yield Damage(name, "", f"{one.beyond} chunks lie beyond its shape")
