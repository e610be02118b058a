"""AbacusSummit's CompaSO halos: ASDF, which is YAML and then blocks, here compressed by Blosc.

Read without the libraries: asdf unpacks a column as a whole, and on the word of its header; the
pieces of 4 MB that a block consists of can be unpacked one by one, with what zarr brings.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from ..conventions import StoreError
from .dialect import Ask, View, merged, number
from .parts import UNREADABLE, Part, Table, check_declared, read_exactly

MAGIC, TREE = b"\xd3BLK", 2**20  # a block; bytes of the YAML, at most
NODES, NESTING = 2**17, 64  # of the tree: values and what holds them, and how deep
PIECE = 2**28  # bytes that a piece of a block unpacks to, at most
_HEADER = struct.Struct(">I4sQQQ16s")
_TYPES = {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
_TYPES |= {"float32", "float64"}


class _Block(NamedTuple):
    """Where the bytes of a block begin, how many, and to how many they unpack."""

    begin: int
    used: int
    unpacked: int
    compression: bytes


class _Loader(yaml.CSafeLoader):
    """YAML as plain lists and dicts, whatever their tags say."""


def _untagged(loader: Any, tag: str, node: Any) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node)


_Loader.add_multi_constructor("", _untagged)


def scan_asdf(path: str) -> Table:
    """Columns under ``data`` of an ASDF file, with its ``header``."""
    try:
        tree, start = _tree(path)
        found = _blocks(path, start)
        data, header = tree.get("data"), tree.get("header")
        if not isinstance(data, dict) or not isinstance(header, dict):
            raise StoreError(f"{path!r} is no ASDF file of AbacusSummit: no `data`, no `header`")
        parts = {}
        for name, node in data.items():
            part = _part(path, str(name), node, found)
            if part is not None:
                parts[part.name] = part
    except StoreError:
        raise
    except (*UNREADABLE, RecursionError, yaml.YAMLError) as error:
        raise StoreError(f"{path!r} cannot be read as ASDF ({error}): truncated?") from error
    return Table(path, {"": header}, parts)


def _tree(path: str) -> tuple[dict[str, Any], int]:
    """The tree before the blocks, and where it ends."""
    with open(path, "rb") as file:
        head = file.read(TREE)
    end = re.search(rb"\n\.\.\.\r?\n", head)
    if not head.startswith(b"#ASDF ") or end is None:
        raise StoreError(f"{path!r} is no ASDF file, or the tree at its beginning is cut off")
    tree = yaml.load(head[: end.end()], _Loader)
    if _nodes(tree, {}, 0) > NODES:
        raise StoreError(f"{path!r}: the tree of the file has more than {NODES} values")
    return (tree if isinstance(tree, dict) else {}), end.end()


def _nodes(value: Any, known: dict[int, int], depth: int) -> int:
    """Values in a tree, where each alias counts as all that it stands for."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = NODES + 1  # as long as it is not known: of a node within itself
        parts = value.values() if isinstance(value, dict) else value
        below = sum(_nodes(part, known, depth + 1) for part in parts)
        known[id(value)] = 1 + below if depth < NESTING else NODES + 1
    return known[id(value)]


def _blocks(path: str, start: int) -> list[_Block]:
    held = Path(path).stat().st_size
    found: list[_Block] = []
    with open(path, "rb") as file:
        file.seek(start)
        at = start + max(file.read(2**16).find(MAGIC), 0)
        while True:
            file.seek(at)
            if file.read(4) != MAGIC:
                return found
            (size,) = struct.unpack(">H", file.read(2))
            if size < _HEADER.size:
                raise StoreError(f"{path!r}: a block has a header of {size} bytes")
            flags, how, allocated, used, unpacked, _ = _HEADER.unpack(file.read(_HEADER.size))
            begin = at + 6 + size
            if flags or begin + used > held or used > allocated:
                raise StoreError(
                    f"{path!r}: block {len(found)} declares {used} bytes, and the file ends "
                    f"{held - begin} bytes on: truncated or damaged"
                )
            check_declared(path, f"block {len(found)}", unpacked, used)
            found.append(_Block(begin, used, unpacked, how.rstrip(b"\0")))
            at = begin + allocated


def _part(path: str, name: str, node: Any, found: list[_Block]) -> Part | None:
    if not isinstance(node, dict) or node.get("datatype") not in _TYPES:
        return None
    source, shape = node.get("source"), node.get("shape")
    # A source may also be the name of another file, which is none of this catalogue's.
    if not isinstance(source, int) or not isinstance(shape, list):
        return None
    if {"offset", "strides"} & {*node}:  # a view of another column, which CompaSO has none of
        return None
    if not all(isinstance(n, int) and n >= 0 for n in shape) or not 0 <= source < len(found):
        raise StoreError(f"{path!r}: {name} has shape {shape} in block {source} of {len(found)}")
    dtype = np.dtype(node["datatype"])
    dtype = (
        dtype.newbyteorder("<") if node.get("byteorder") == "little" else dtype.newbyteorder(">")
    )
    block = found[source]
    if math.prod(shape) * dtype.itemsize != block.unpacked:
        raise StoreError(f"{path!r}: {name} has shape {shape}, its block {block.unpacked} bytes")
    if block.compression not in (b"", b"blsc"):
        raise StoreError(
            f"{path!r}: {name} is compressed by {block.compression!r}; expected b'blsc', as "
            "AbacusSummit has it, or nothing"
        )
    if not block.compression and block.used != block.unpacked:
        raise StoreError(f"{path!r}: {name} has {block.used} of {block.unpacked} bytes")
    return Part(path, name, tuple(shape), dtype, 1, read_asdf, (block,))


def read_asdf(part: Part, rows: slice) -> NDArray[Any]:
    """Rows of a block, from the pieces that they lie in."""
    (block,) = part.where
    row_bytes = part.dtype.itemsize * math.prod(part.shape[1:])
    low, high = rows.start * row_bytes, rows.stop * row_bytes
    shape = (rows.stop - rows.start, *part.shape[1:])
    if not block.compression:
        return read_exactly(part.path, block.begin + low, part.dtype, shape)
    data = b"".join(_unpack(part.path, block, low, high))
    return np.frombuffer(data, part.dtype).reshape(shape)


def _unpack(path: str, block: _Block, low: int, high: int) -> Iterator[bytes]:
    """Bytes ``low`` to ``high`` of what a block unpacks to."""
    from numcodecs import blosc

    at, end, done = block.begin, block.begin + block.used, 0
    with open(path, "rb") as file:
        while done < high:
            # The length of a piece, and Blosc's own header: bytes before and after packing.
            file.seek(at)
            (size,) = struct.unpack(">I", file.read(4))
            head = file.read(16)
            size_out, _, size_in = struct.unpack("<4xIII", head)
            if size != size_in or at + 4 + size > end or not 0 < size_out <= PIECE:
                raise StoreError(f"a piece of {size} bytes is to unpack to {size_out}: damaged")
            if done + size_out > block.unpacked:
                raise StoreError(f"more than the {block.unpacked} bytes that are declared")
            if done + size_out > low:
                piece = blosc.decompress(head + file.read(size - 16))
                yield piece[max(low - done, 0) : high - done]
            done += size_out
            at += 4 + size


def compaso(table: Table, ask: Ask) -> View:
    """Halos: positions in units of the box and about 0, velocities in units of the box too."""
    path, header = table.path, table.attrs[""]
    if "N_total" in table.parts and "x_L2com" not in table.parts:
        raise StoreError(
            f"{path!r} says how AbacusSummit's halos were cleaned, not where they are. Open those "
            "that were found, halo_info_*.asdf; or clean them by abacusutils: "
            "CompaSOHaloCatalog(folder, cleaned=True), of its halos those with N > 0, and "
            "from_arrays(x_L2com + box_size / 2, v_L2com, N * ParticleMassHMsun, ...)"
        )
    facts = merged(ask)
    side = number(header, "BoxSizeHMpc", path)
    facts["box_size"] = side if facts["box_size"] is None else facts["box_size"]
    if facts["redshift"] is None:
        facts["redshift"] = number(header, "Redshift", path)
    if facts["cosmology"] is None:
        facts["cosmology"] = {
            "Omega_m": number(header, "Omega_M", path),
            "h": number(header, "H0", path) / 100,
        }
    siblings = [*Path(path).parent.glob("halo_info_*.asdf")]
    return View(
        facts,
        names={"position": "x_L2com", "velocity": "v_L2com", "mass": "N"},
        units={
            "position": (side, "box"),
            "velocity": (number(header, "VelZSpace_to_kms", path), "velocities of a unit box"),
            "mass": (number(header, "ParticleMassHMsun", path), "particles"),
        },
        centred=True,
        files=len(siblings) if Path(path) in siblings else None,
        source={"simulation": str(header.get("SimName", "")), "cleaned": False},
    )
