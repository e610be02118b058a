"""A stranger's store, looked at before any library builds on what it says.

Its metadata are read with a limit and as plain JSON; names, codecs, shapes and sizes are checked.
Then every read goes through :class:`~cosmofields.store.opened.Opened`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, ObjectStore, ZipStore

from ..conventions import CosmofieldsError, StoreError, listing, too_nested
from .files import COMPRESSORS, METADATA, inside, too_large
from .places import Place, brief

Documents = dict[str, dict[str, Any]]

# A box of 4096^3 cells in 64 chunks an axis has 10^6 chunks of 1 MB, and metadata of some kB.
NODES = 10_000  # groups and arrays
DEPTH = 12  # groups within groups
NESTING = 64  # lists and dicts within one another
CHUNKS = 2**23  # of an array
# What xarray reads when it opens, all together: coordinates that index a dim, text, the ends of
# times.
EAGER, EAGER_CHUNKS = 2**24, 2**11

META = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")

# Codecs that compute.  Others, pickle first among them, run or make objects as the file says.
CODECS = {
    *("bytes", "transpose", "sharding_indexed", "vlen-utf8", "vlen-bytes"),
    *("blosc", "zstd", "gzip", "crc32c", "zlib", "bz2", "lz4", "lzma", "zfpy", "pcodec"),
    *("delta", "fixedscaleoffset", "quantize", "bitround", "packbits", "shuffle", "astype"),
    *("crc32", "adler32", "fletcher32", "jenkins_lookup3"),
}
# Codecs that add four bytes to what is compressed.
CHECKSUMS = {"crc32c", "crc32", "adler32", "fletcher32", "jenkins_lookup3"}


def documents(store: Store, place: Place) -> tuple[Literal[2, 3], bool, Documents]:
    """Metadata of every group and array of a store, checked.

    Returns
    -------
    zarr_format : int
        2 or 3.
    consolidated : bool
        Whether they came from the root's.
    documents : dict
        By path, the root's under ``""``.

    Raises
    ------
    StoreError
        If there is no store, or one that no one should open.
    """
    root = read_json(store, "zarr.json", place)
    if root is None:
        return _documents_2(store, place)
    inline = root.pop("consolidated_metadata", None)
    found: Documents = {"": root}
    if root.get("node_type") == "array":
        raise StoreError(
            f"'{place}' is a single Zarr array. Expected a group, which write_store or xarray's "
            "to_zarr makes"
        )
    if inline is None:
        found |= dict(_walk(store, place))
    else:
        nodes = inline.get("metadata") if isinstance(inline, dict) else None
        if not isinstance(nodes, dict):
            raise StoreError(f"'{place}': its consolidated metadata are no dict of nodes")
        for name, document in nodes.items():
            if not isinstance(document, dict):
                raise StoreError(f"'{place}': the metadata of {name!r} are no dict")
            within = document.pop("consolidated_metadata", None)
            if within and (not isinstance(within, dict) or within.get("metadata")):
                raise StoreError(f"'{place}': {name!r} has consolidated metadata of its own")
            found[name] = document
    _check(found, place)
    return 3, inline is not None, found


def _walk(store: Store, place: Place) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node below the root of a store without consolidated metadata."""
    if not store.supports_listing or place.kind == "web":
        raise StoreError(
            f"'{place}' has no consolidated metadata, and a web server does not list what there "
            "is. Its owner can add them: zarr.consolidate_metadata(path)"
        )
    waiting, n = [""], 0
    while waiting:
        group = waiting.pop()
        for child in sorted(sync(_children(store, f"{group}/" if group else ""))):
            child = child.rstrip("/")
            if child in META or not child:
                continue
            name = f"{group}/{child}".lstrip("/")
            document = read_json(store, f"{name}/zarr.json", place)
            if document is None:
                continue
            document.pop("consolidated_metadata", None)
            n += 1
            _check_name(name, place)
            if n > NODES:
                raise StoreError(f"'{place}' has more than {NODES:,} groups and arrays")
            yield name, document
            if document.get("node_type") == "group":
                waiting.append(name)


async def _children(store: Store, group: str) -> list[str]:
    return [name async for name in store.list_dir(group)]


def _documents_2(store: Store, place: Place) -> tuple[Literal[2], bool, Documents]:
    """As :func:`documents`, of Zarr's earlier format, with consolidated metadata."""
    group = read_json(store, ".zgroup", place)
    if group is None:
        raise StoreError(
            f"'{place}' is no Zarr store: there is no zarr.json. Expected what write_store or "
            "xarray's to_zarr made; other files are for open_box or open_catalog"
        )
    inline = read_json(store, ".zmetadata", place)
    nodes = inline.get("metadata") if inline else None
    if not isinstance(nodes, dict):
        raise StoreError(
            f"'{place}' is a Zarr store of format 2 without consolidated metadata. Write it again: "
            "xr.open_zarr(path).to_zarr(new, zarr_format=3)"
        )
    found: Documents = {"": {"node_type": "group"}}
    for key, document in nodes.items():
        name, _, kind = key.rpartition("/")
        if kind == ".zattrs" and isinstance(document, dict):
            found.setdefault(name, {})["attributes"] = document
        elif kind in (".zarray", ".zgroup") and isinstance(document, dict):
            node = found.setdefault(name, {})
            node |= document if kind == ".zarray" else {}
            node["node_type"] = "array" if kind == ".zarray" else "group"
        else:
            raise StoreError(f"'{place}': its metadata hold {key!r}, which is no metadata of Zarr")
    # zarr takes those of the root from the root.
    found[""]["attributes"] = read_json(store, ".zattrs", place) or {}
    _check(found, place)
    return 2, True, found


def read_json(store: Store, key: str, place: Place) -> dict[str, Any] | None:
    """A metadata file; None if there is none."""
    try:
        raw = _read(store, key, place)
    except CosmofieldsError:
        raise
    except Exception as error:  # of a damaged zip file, say, each compression has its own
        raise StoreError(f"'{place}': {key} cannot be read ({brief(error)})") from error
    if raw is None:
        return None
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"'{place}' is no Zarr store: {key} is no JSON ({error})") from error
    if not isinstance(document, dict):
        raise StoreError(f"'{place}' is no Zarr store: {key} is a {type(document).__name__}")
    return document


def _read(store: Store, key: str, place: Place) -> bytes | None:
    """Content of a small file, however large it is."""
    refusal = too_large(key, place)
    if isinstance(store, ObjectStore):  # a server need not be true to the size that it says
        import obstore

        parts, n = [], 0
        try:
            for part in obstore.get(store.store, key).stream():
                parts.append(bytes(part))
                n += len(parts[-1])
                if n > METADATA:
                    raise refusal
        except (FileNotFoundError, NotADirectoryError):
            return None
        return b"".join(parts)
    size = size_of(store, key, place)
    if size is None:
        size = sync(store.getsize(key)) if sync(store.exists(key)) else -1
    if size < 0:
        return None
    if size > METADATA:
        raise refusal
    value = sync(store.get(key, default_buffer_prototype()))
    return None if value is None else value.to_bytes()


def size_of(store: Store, key: str, place: Place) -> int | None:
    """Bytes of a file on this machine; -1 if there is none, None if the store is elsewhere."""
    if isinstance(store, LocalStore):
        path = inside(store.root, key, place)
        return path.stat().st_size if path.is_file() else -1
    if isinstance(store, ZipStore):
        if not store._is_open:
            store._sync_open()
        info = store._zf.NameToInfo.get(key)
        return info.file_size if info else -1
    return None


# --- what is checked ---


def _check(found: Documents, place: Place) -> None:
    if len(found) > NODES:
        raise StoreError(f"'{place}' has {len(found):,} groups and arrays; at most {NODES:,}")
    values = chunks = 0  # that are read when the store is opened
    for name, document in found.items():
        if name:
            _check_name(name, place)
        if too_nested(document, NESTING):
            raise StoreError(
                f"'{place}': the metadata of {name or '/'!r} nest more than {NESTING} deep"
            )
        if not isinstance(document.get("attributes", {}), dict):
            raise StoreError(f"'{place}': the attributes of {name or '/'!r} are no dict")
        if document.get("node_type") == "array":
            shape, grid = _check_array(name, document, place)
            if _is_eager(name, document):
                values, chunks = values + math.prod(shape), chunks + math.prod(grid)
            if values > EAGER or chunks > EAGER_CHUNKS:
                raise StoreError(
                    f"'{place}': coordinates and text up to `{name}` have {values:,} values in "
                    f"{chunks:,} chunks, which would be read into memory at once; at most "
                    f"{EAGER:,} in {EAGER_CHUNKS:,}"
                )


def _check_name(name: str, place: Place) -> None:
    parts = name.split("/")
    if len(parts) > DEPTH:
        raise StoreError(f"'{place}' has groups within groups deeper than {DEPTH}")
    for part in parts:
        if part in ("", ".", "..") or len(part) > 255 or not part.isprintable() or "\\" in part:
            raise StoreError(f"'{place}' has a group or array of the name {name[:300]!r}")


def _check_array(
    name: str, document: Mapping[str, Any], place: Place
) -> tuple[list[int], list[int]]:
    """Shape of an array, and chunks along each axis."""
    shape: Any = document.get("shape")
    chunks: Any
    if "chunks" in document:  # format 2
        chunks = document["chunks"]
    else:
        how = document.get("chunk_grid")
        how = how.get("configuration") if isinstance(how, dict) else None
        chunks = how.get("chunk_shape") if isinstance(how, dict) else None
    if not _sizes(shape, 0) or not _sizes(chunks, 1) or len(shape) != len(chunks):
        raise StoreError(
            f"'{place}': `{name}` says that it has shape {str(shape)[:100]} in chunks of "
            f"{str(chunks)[:100]}; expected two lists of whole numbers"
        )
    codecs = codecs_of(document)
    names = [codec for codec, _ in codecs]
    for codec in names:
        if codec not in CODECS:
            raise StoreError(
                f"'{place}': `{name}` is encoded with {codec[:100]!r}, which cosmofields does not "
                "read: a codec may run code of whoever wrote the store"
            )
    first = first_compressor(names)
    after = [codec for codec in names[first + 1 :] if codec not in CHECKSUMS]
    if after and "sharding_indexed" not in names:
        raise StoreError(
            f"'{place}': `{name}` is compressed with {names[first]}, and then encoded with "
            f"{listing(after)}: nothing would say how large its chunks become"
        )
    for codec, options in codecs:
        if codec == "lzma" and (options.get("format", 1) != 1 or options.get("filters")):
            raise StoreError(
                f"'{place}': `{name}` is compressed with lzma in a format of its own; only that of "
                ".xz is read"
            )
    for key in ("scale_factor", "add_offset"):  # xarray computes with them when values are read
        value = document.get("attributes", {}).get(key, 1)
        kind = document.get("data_type", document.get("dtype"))
        real = isinstance(kind, str) and re.fullmatch(r"u?int\d+|float\d+|[<>|][iuf]\d", kind)
        odd = type(value) not in (int, float) or abs(value) > 1e300
        if odd or (key in document.get("attributes", {}) and not real):
            raise StoreError(
                f"'{place}': `{name}`, of {str(kind)[:40]}, has {key}={str(value)[:100]!r}; "
                "expected a number, of numbers"
            )
    grid = [-(-side // chunk) for side, chunk in zip(shape, chunks, strict=True)]
    if math.prod(grid) > CHUNKS:
        raise StoreError(f"'{place}': `{name}` has {math.prod(grid):,} chunks; at most {CHUNKS:,}")
    return shape, grid


def _sizes(value: Any, least: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 32
        and all(type(item) is int and least <= item < 2**53 for item in value)
    )


def first_compressor(names: list[str]) -> int:
    """Which of the codecs is the first to compress; beyond the last if none does."""
    return next((i for i, codec in enumerate(names) if codec in COMPRESSORS), len(names))


def codecs_of(document: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Names and options of the codecs of an array, in the order in which they encode."""
    used = document.get("codecs")
    if "chunks" in document:  # format 2
        filters = document.get("filters") or []
        used = [*(filters if isinstance(filters, list) else [filters])]
        used += [document["compressor"]] if document.get("compressor") else []
    return [(codec.removeprefix("numcodecs."), options) for codec, options in _codecs(used)]


def _codecs(used: Any, depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Codecs, those within shards included; what is none counts as a name."""
    if not isinstance(used, list) or depth > 3:
        yield str(used), {}
        return
    for codec in used:
        if not isinstance(codec, dict):
            yield str(codec), {}
            continue
        name = codec.get("name", codec.get("id"))
        options = codec.get("configuration", {}) if "name" in codec else codec
        options = options if isinstance(options, dict) else {}
        yield str(name), options
        if name == "sharding_indexed":
            for part in ("codecs", "index_codecs"):
                yield from _codecs(options.get(part), depth + 1)


def _is_eager(name: str, document: Mapping[str, Any]) -> bool:
    attrs = document.get("attributes", {})
    dims = document.get("dimension_names") or attrs.get("_ARRAY_DIMENSIONS")
    kind = document.get("data_type", document.get("dtype"))
    text = not isinstance(kind, str) or kind in ("string", "bytes", "variable_length_bytes", "|O")
    times = " since " in str(attrs.get("units"))
    return text or times or dims == [name.rpartition("/")[2]]


def digest(found: Documents) -> str:
    """Short name of all metadata but what says so itself."""
    plain = {name: dict(document) for name, document in found.items()}
    attrs = dict(plain[""].get("attributes", {}))
    attrs.pop("complete", None)
    made = attrs.get("cosmofields")
    if isinstance(made, dict):
        attrs["cosmofields"] = {k: v for k, v in made.items() if k != "metadata_sha256"}
    plain[""]["attributes"] = attrs
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
