"""Files of each format, changed by who knows the format."""

from __future__ import annotations

import io
import os
import pickle
import struct
import warnings
import zipfile
from typing import Any

import h5py
import numpy as np

from .draws import REAL, TEXT, WHOLE, Draws, chance, pick, weird
from .mutations import bytes_changed, text_changed

CANARY = "cosmofields-was-here"


class Evil:
    """What a pickle could do: the folder it makes is looked for after each case."""

    def __reduce__(self) -> Any:
        return os.mkdir, (CANARY,)


DTYPES = ["f4", "f8", "i1", "u8", "?", "c8", "S3", "U2", "f2", "M8[s]", "O", "f4,i4", ">f8", "V7"]


# --- HDF5 ---


def hdf5_changed(data: bytes, draws: Draws) -> bytes:
    """Attributes, datasets and links of an HDF5 file replaced."""
    with h5py.File.in_memory(data) as file:
        for _ in range(draws.whole(1, 3)):
            names: list[str] = [""]
            file.visit(names.append)
            name = pick(draws, names)
            item = file[name] if name else file
            if draws.whole(0, 1):
                _attribute(item, draws)
            elif name:
                try:
                    _dataset(file, name, item, draws)
                except (ValueError, TypeError, OSError, RuntimeError, OverflowError, KeyError):
                    continue  # that cannot be written
        file.flush()
        return bytes(file.id.get_file_image())


def _attribute(item: Any, draws: Draws) -> None:
    keys = list(item.attrs) or ["box_size"]
    key = pick(draws, keys)
    how = draws.whole(0, 6)
    try:
        if how <= 2:
            value = weird(draws)
            item.attrs[key] = str(value)[:60_000] if isinstance(value, dict | list) else value
        elif how == 3:
            old = np.asarray(item.attrs.get(key, 1))
            item.attrs[key] = np.resize(old, draws.whole(0, 40))
        elif how == 4:
            item.attrs[key] = np.array(pick(draws, REAL)).astype(pick(draws, ["f4", "f8", "f2"]))
        elif how == 5:
            item.attrs[key] = pick(
                draws,
                [h5py.Empty("f8"), np.array([b"a", b"bb"]), np.zeros((0,)), np.zeros((2, 2)),
                 np.array((1, 2.0), "i4,f8"), np.array([1 + 2j]), b"\xff\xfe", "x" * 60_000,
                 np.array([True]), item.ref, item.file.ref],
            )  # fmt: skip
        elif key in item.attrs:
            del item.attrs[key]
    except (ValueError, TypeError, OSError, RuntimeError, OverflowError, KeyError):
        pass  # that cannot be written


def _dataset(file: Any, name: str, item: Any, draws: Draws) -> None:
    how = draws.whole(0, 13)
    if how == 0:
        del file[name]
        return
    if how == 1:
        other = pick(draws, ["/", "/nowhere", name, f"/{name.rpartition('/')[0]}"])
        del file[name]
        file[name] = h5py.SoftLink(other)
        return
    if how == 2:
        path = pick(draws, ["outside/secret.h5", "../outside/secret.h5", "/dev/zero"])
        del file[name]
        file[name] = h5py.ExternalLink(path, "position")
        return
    if how == 3:
        file[f"{name}-again"] = file["/"]  # the file in itself
        return
    if how == 4:
        group = file.create_group("deep")
        for _ in range(pick(draws, [5, 20, 200])):
            group = group.create_group("g")
        return
    if not isinstance(item, h5py.Dataset):
        kept = np.ones((3, 3))
        del file[name]
        file[name] = kept
        return
    # One that a change before made of itself would be read for ever.
    plain = item.shape and not item.is_virtual
    shape, values = item.shape, item[()] if plain else np.ones(3)
    del file[name]
    if how == 5:
        chunks = tuple(min(max(n, 1), 100) for n in (shape or (1,)))
        huge = (pick(draws, WHOLE[10:-2]), *(shape or (1,))[1:])
        file.create_dataset(name, huge, pick(draws, ["f4", "f8"]), chunks=chunks,
                            fillvalue=pick(draws, [0, np.nan, 1.5]))  # fmt: skip
    elif how == 6:
        dtype = np.dtype(pick(draws, DTYPES))
        if dtype.hasobject:
            file.create_dataset(name, data=np.array([b"a"] * 12, object), dtype=h5py.string_dtype())
        else:
            file.create_dataset(name, shape or (1,), dtype)
    elif how == 7:
        layout = h5py.VirtualLayout((12, 3), "f8")
        path = pick(draws, ["outside/secret.h5", "../outside/secret.h5", "."])
        layout[:] = h5py.VirtualSource(path, pick(draws, ["position", name]), (12, 3))
        file.create_virtual_dataset(name, layout, fillvalue=1.0)
    elif how == 8:
        path = pick(draws, ["outside/secret.npy", "../outside/secret.npy", "/etc/passwd"])
        file.create_dataset(name, (5, 3), "f8", external=[(path, 0, h5py.h5f.UNLIMITED)])
    elif how == 9:
        file.create_dataset(name, data=np.full(np.shape(values), pick(draws, REAL)))
    elif how == 10:
        new = pick(
            draws, [(0,), (0, 3), (), (12, 4), (3, 12), (12,), (12, 3, 1), (1,) * 30, (12, 0)]
        )
        file.create_dataset(name, data=np.ones(new))
    elif how == 11:
        file.create_dataset(
            name, data=np.resize(values, (2000, 3)), chunks=True,
            compression=pick(draws, ["gzip", "lzf"]), shuffle=True, fletcher32=True,
        )  # fmt: skip
    elif how == 12:
        kinds = [
            h5py.vlen_dtype("f8"),
            h5py.enum_dtype({"a": 1}),
            h5py.ref_dtype,
            h5py.regionref_dtype,
        ]
        file.create_dataset(name, (12, 3), pick(draws, kinds))
    else:
        file.create_dataset(name, data=h5py.Empty("f8"))


# --- zip, and NPZ ---


def zip_changed(data: bytes, draws: Draws, member: Any = None) -> bytes:
    """Members of a zip file renamed, doubled, packed otherwise, or made to become gigabytes.

    ``member(name, content, draws)`` changes the content of one.
    """
    out = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old:
            entries = [(info.filename, old.read(info)) for info in old.infolist()]
    except Exception:
        return bytes_changed(data, draws)
    chosen = draws.whole(0, len(entries) - 1)
    how = draws.whole(0, 11)
    packing = pick(
        draws, [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2]
    )
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", packing) as new:
        warnings.simplefilter("ignore")  # of names that are there twice
        for i, (name, content) in enumerate(entries):
            if i == chosen:
                if how == 0:
                    name = pick(
                        draws, ["../a", "/etc/passwd", "a/../../b", ".", "\\a", "zarr.json/", "c:a"]
                    )
                elif how == 1:
                    continue
                elif how == 2:
                    new.writestr(zipfile.ZipInfo(name), draws.raw(20))
                elif how == 3 and chance(draws, 20):
                    new.writestr(name, bytes(2**27), zipfile.ZIP_DEFLATED)
                    continue
                elif how == 4:
                    link = zipfile.ZipInfo(name)
                    link.external_attr = 0o120777 << 16
                    new.writestr(link, "/etc/passwd")
                    continue
                elif how <= 9 and member is not None:
                    content = member(name, content, draws)
                elif how == 10:
                    content = bytes_changed(content, draws)
            new.writestr(name, content)
    raw = out.getvalue()
    return bytes_changed(raw, draws) if how == 11 else raw


def npy_changed(name: str, content: bytes, draws: Draws) -> bytes:
    """A member of an NPZ file with another header, or with a pickle."""
    how = draws.whole(0, 9)
    if how == 0:
        return _npy("|O", "(12, 3)", pickle.dumps([Evil()] * 36))
    if how == 1:
        return content[: draws.whole(0, len(content))]
    if how == 2:
        return text_changed(content[:128], draws) + content[128:]
    kind = pick(draws, ["<f8", "<f4", "|O", "<i8", "|S9", "<U9", "<c16", "|V8", "<M8[ns]", ">f8",
                        "<f2", "|b1", "[('a', '<f8')]", "__import__('os')"])  # fmt: skip
    rows = pick(draws, [*WHOLE[:-2], 12, 36, "True", "'a'", "12.0"])
    shape = pick(
        draws, [f"({rows},)", f"({rows}, 3)", f"({rows}, 0)", "()", f"{rows}", f"({rows}, {rows})"]
    )
    body = content[128:] if how < 8 else draws.raw(100)
    return _npy(kind, shape, body, pick(draws, ["False", "True", "None", "1"]), 1 + (how == 9))


def _npy(kind: str, shape: str, body: bytes, fortran: str = "False", version: int = 1) -> bytes:
    descr = kind if kind[0] in "[_" else repr(kind)
    head = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    size = struct.pack("<H" if version == 1 else "<I", len(head) % 2**16)
    return b"\x93NUMPY" + bytes([version, 0]) + size + head + body


# --- tables ---


def fits_changed(data: bytes, draws: Draws) -> bytes:
    """Cards of 80 bytes replaced in one of the headers."""
    changed = bytearray(data)
    cards = [at for at in range(0, len(data) - 79, 80) if data[at + 8 : at + 10] == b"= "]
    if not cards:
        return bytes_changed(data, draws)
    for _ in range(draws.whole(1, 3)):
        at = pick(draws, cards)
        how = draws.whole(0, 7)
        if how <= 4:
            value = pick(
                draws,
                [*map(str, WHOLE[:-6]), "T", "F", "''", "'3D'", "'1PD(9)'", "'QD(999999999)'",
                "'A'",
                 "'999999999D'", "'0D'", "'X'", "'1D '", "'BINTABLE'", "'IMAGE'", "NaN",
                 "1e400", "'",
                 "'TABLE'", "'D3'", "'(3,4)'", "'(999999999,999999999)'", "'-1D'", "1.5", "(1,2)"],
            )  # fmt: skip
            changed[at + 10 : at + 80] = value.encode()[:70].rjust(20).ljust(70)[:70]
        elif how == 5:
            names = [b"NAXIS", b"NAXIS1", b"NAXIS2", b"PCOUNT", b"THEAP", b"TSCAL1", b"TZERO1",
                     b"TNULL1", b"TDIM1", b"TFORM1", b"TTYPE2", b"END", b"SIMPLE",
                     b"ZIMAGE"]  # fmt: skip
            changed[at : at + 8] = pick(draws, names).ljust(8)
        elif how == 6:
            other = pick(draws, cards)
            changed[at : at + 80] = changed[other : other + 80]
        else:
            changed[at : at + 80] = b"CONTINUE  'x&'".ljust(80)
    return bytes(changed)


def parquet_changed(data: bytes, draws: Draws) -> bytes:
    """A table of Parquet with columns of other types, and other metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    n = 12
    columns = {name: pa.array(np.linspace(1, 9, n)) for name in ("x", "y", "z", "vx", "vy", "vz")}
    columns["mass"] = pa.array(np.full(n, 1e12))
    odd = [
        pa.array(["a"] * n), pa.array([None] * n), pa.array([1.0, None] * (n // 2)),
        pa.array([[1.0] * 3] * n), pa.array([[1.0, 2.0]] * n, pa.list_(pa.float64(), 2)),
        pa.array([[1.0] * 3] * n, pa.list_(pa.float64(), 3)), pa.array([{"a": 1}] * n),
        pa.array([b"x"] * n), pa.array([True] * n), pa.array(range(n), pa.timestamp("s")),
        pa.array(["a"] * n).dictionary_encode(), pa.array([1] * n, pa.decimal128(5, 2)),
        pa.array([float("nan")] * n), pa.array([1] * n, pa.uint64()), pa.array([1] * n,
        pa.float16()),
        pa.array([[None, 1.0, 2.0]] * n, pa.list_(pa.float64(), 3)),
        pa.array([None] * n, pa.list_(pa.float64(), 3)), pa.nulls(n, pa.float64()),
    ]  # fmt: skip
    for _ in range(draws.whole(1, 2)):
        columns[pick(draws, [*columns, "position", "velocity", ""])] = pick(draws, odd)
    attrs = {"box_size": "300.0", "redshift": "0.5"}
    if draws.whole(0, 1):
        attrs[
            pick(draws, ["box_size", "redshift", "Omega_m", "h", "los", "space", "cosmology"])
        ] = str(pick(draws, [*TEXT[:8], *REAL, *WHOLE[:-6]]))
    attrs = {k.encode(): v.encode("utf-8", "replace") for k, v in attrs.items()}
    sink = io.BytesIO()
    table = pa.table(columns).replace_schema_metadata(attrs)
    pq.write_table(table, sink, row_group_size=pick(draws, [1, 5, 12, 100]),
                   compression=pick(draws, ["snappy", "gzip", "zstd", "none", "lz4"]))  # fmt: skip
    raw = sink.getvalue()
    return bytes_changed(raw, draws) if chance(draws, 3) else raw


# --- headers of text before bytes ---


def asdf_changed(data: bytes, draws: Draws) -> bytes:
    """The tree in YAML, or the header of a block."""
    end = data.find(b"\n...\n")
    how = draws.whole(0, 9)
    if how <= 5:
        return text_changed(data[:end], draws) + data[end:]
    if how == 6:
        tags = [b"!!python/object/apply:os.mkdir ['cosmofields-was-here']", b"!core/x {a: 1}",
                b"&a [*a, *a]", b"!!binary 'zzz'", b"!!timestamp 2001-13-45", b"{? [1, 2] : 3}",
                b"!!set {a, b}", b"!!omap [a: 1]", b"!!float .inf", b"!!int 9" + b"9" * 5000,
                b"&a [x,x,x,x,x,x,x,x,x]", b"2001-12-14t21:59:43.10-05:00", b"0o17", b"1:2:3:4",
                b"!!python/name:os.system", b"<<: {a: 1}",
                b"!<tag:yaml.org,2002:str> 3"]  # fmt: skip
        lines = data[:end].split(b"\n")
        at = draws.whole(0, len(lines) - 1)
        lines[at] = lines[at].split(b":")[0] + b": " + pick(draws, tags)
        return b"\n".join(lines) + data[end:]
    if how == 7:
        laughs = b"a0: &a0 [1,1,1,1,1,1,1,1,1]\n" + b"".join(
            f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n".encode() for i in range(1, 9)
        )
        lines = data[:end].split(b"\n")
        at = data.find(b"\n", data.find(b"\n---") + 1) + 1
        keys = [i for i, line in enumerate(lines) if b": " in line and not line.startswith(b"%")]
        if keys:
            i = pick(draws, keys)
            lines[i] = lines[i].split(b": ")[0] + b": *a8"
        tree = b"\n".join(lines)
        return tree[:at] + laughs + tree[at:] + data[end:]
    starts = [at for at in range(end, len(data)) if data[at : at + 4] == b"\xd3BLK"]
    if not starts:
        return bytes_changed(data, draws)
    at = pick(draws, starts)
    return data[:at] + bytes_changed(data[at : at + 80], draws) + data[at + 80 :]


def group_tab_changed(data: bytes, draws: Draws) -> bytes:
    """The five numbers of a header, at times with as many bytes as they then declare."""
    head = list(struct.unpack("<iiiQi", data[:24]))
    at = draws.whole(0, 4)
    head[at] = pick(draws, [0, 1, 2, 3, 6, 7, 12, 24, 1000, 2**20, 2**31 - 1])
    raw = struct.pack("<iiiQi", *head) + data[24:]
    if draws.whole(0, 1):
        raw = raw[: 24 + head[0] * 84].ljust(min(24 + head[0] * 84, 10_000), b"\x01")
    return bytes_changed(raw, draws) if draws.whole(0, 1) else raw
