"""A store that was looked at, to be read from.

No key leads out of it, no chunk becomes larger than its array says, and none is missing from a
store that wrote them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

import numcodecs
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from ..conventions import StoreError
from .files import METADATA, becomes, too_large
from .places import Place
from .vetting import CHECKSUMS, META, Documents, codecs_of, first_compressor, size_of

_IN_FRONT = {"crc32", "adler32"}  # checksums, unless they say where


class Packed(NamedTuple):
    """What is known of the chunks of an array before a codec unpacks them."""

    compressor: str | None
    most: int  # bytes that it may make of one
    front: int  # bytes of checksums before what is compressed
    behind: int  # and after it
    texts: int | None  # strings in a chunk of text


class Opened(WrapperStore[Store]):
    """A store to read from: keys that stay inside, chunks of their size, none missing.

    Parameters
    ----------
    store : Store
    place : Place
    sizes : dict of str to Packed
        What is known of its chunks, by the path of the array.
    whole : bool
        Whether a chunk that is not there is one that was lost.
    made : str
        Changes with the content, so that dask does not take one store for another at its path.
    nbytes : dict of str to int, optional
        Bytes of a decoded chunk, by the path of any array.
    """

    def __init__(
        self,
        store: Store,
        place: Place,
        sizes: Mapping[str, Packed],
        whole: bool,
        made: str,
        nbytes: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(store)
        self.place, self.sizes, self.whole, self.made = place, sizes, whole, made
        self.nbytes = nbytes or {}

    def _with_store(self, store: Store) -> Opened:
        return type(self)(store, self.place, self.sizes, self.whole, self.made, self.nbytes)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Value of a key, or None if there is none and need not be."""
        meta = key.rpartition("/")[2] in META
        size = size_of(self._store, key, self.place)
        if size is None and self.place.kind == "icechunk":
            with suppress(Exception):  # said when the key is read
                size = await self._store.getsize(key)
        held = size or 0
        if meta and held > METADATA:
            raise too_large(key, self.place)
        # What does not shrink grows by a header, a checksum or the index of a shard.
        most = next((self.nbytes[up] for up in above(key) if up in self.nbytes), None)
        if not meta and most is not None and held > 2 * most + 2**20:
            raise StoreError(
                f"'{self.place}': the chunk {key} has {held:.3g} bytes, and becomes {most:.3g} "
                "by what its array says"
            )
        value = await self._store.get(key, prototype, byte_range)
        if meta:
            return value
        if value is None and self.whole:
            raise StoreError(
                f"'{self.place}' has lost a chunk: {key} is not there. Copy or write it again; "
                "cosmofields.verify finds all that is wrong"
            )
        known = next((self.sizes[up] for up in above(key) if up in self.sizes), None)
        if known and value is not None and len(value) and byte_range is None:
            content = value.as_numpy_array().data.cast("B")
            content = content[known.front : max(len(content) - known.behind, 0)]
            await asyncio.to_thread(self._count, key, content, known)
        return value

    def _count(self, key: str, content: memoryview, known: Packed) -> None:
        """Refuse a chunk that a codec would take too much memory for."""
        if known.compressor:
            n = becomes(content, known.compressor, known.most)
            if n > known.most:
                raise StoreError(
                    f"'{self.place}': the chunk {key} can become {n:,} bytes, and its array says "
                    f"{known.most:,}"
                )
        if known.texts is None:
            return
        plain = bytes(content)
        if known.compressor:
            try:
                plain = bytes(numcodecs.get_codec({"id": known.compressor}).decode(plain))
            except Exception:  # said when the chunk is decoded
                return
        if (n := int.from_bytes(plain[:4], "little")) > known.texts:
            raise StoreError(
                f"'{self.place}': the chunk {key} says that it holds {n:,} texts, and its array "
                f"says {known.texts:,}"
            )


def above(key: str) -> Iterator[str]:
    """The paths above a key, the nearest first."""
    while key:
        key = key.rpartition("/")[0]
        yield key


def sizes_of(found: Documents, arrays: Mapping[str, tuple[int, int]]) -> dict[str, Packed]:
    """What is known of the chunks of arrays that a codec makes larger.

    Parameters
    ----------
    found : dict
        Of :func:`documents`.
    arrays : dict of str to (int, int)
        Values of a chunk and the bytes that they take; of text, as much as may be.
    """
    sizes = {}
    for name, (n_values, nbytes) in arrays.items():
        codecs = codecs_of(found[name])
        names = [codec for codec, _ in codecs]
        first = first_compressor(names)
        text = bool({"vlen-utf8", "vlen-bytes"} & {*names})
        if "sharding_indexed" in names or (first == len(names) and not text):
            continue
        # What a filter before it has made may be larger than what is decoded.
        filtered = {*names[:first]} - {"bytes", "transpose", "shuffle", "vlen-utf8", "vlen-bytes"}
        front = behind = 0
        for codec, options in codecs[first + 1 :]:
            if options.get("location", "start" if codec in _IN_FRONT else "end") == "start":
                front += 4
            elif codec in CHECKSUMS:
                behind += 4
        sizes[name] = Packed(
            names[first] if first < len(names) else None,
            8 * nbytes + 1024 if filtered else nbytes,
            front,
            behind,
            n_values if text else None,
        )
    return sizes
