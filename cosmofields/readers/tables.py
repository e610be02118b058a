"""Tables of survey-like data: FITS by astropy, Parquet by pyarrow, NPZ by numpy, without pickle."""

from __future__ import annotations

import math
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ..conventions import StoreError
from .parts import UNREADABLE, Part, Table, check_declared, io_extra, plain

FITS_MOST = 999  # columns and dims, by the standard; astropy makes room for as many as are claimed
FITS_BLOCK, FITS_HEADER = 2880, 2**22  # bytes
_FITS_SIZES = {"NAXIS": 0, "TFIELDS": 0, "BITPIX": 8, "PCOUNT": 0, "GCOUNT": 1}
GROUP_BYTES, GROUP_ROWS = 2**32, 2**28  # of a row group of Parquet, which is read as one


def scan_fits(path: str) -> Table:
    """Columns of all binary tables of a FITS file; of the only one under their bare names."""
    fits = io_extra("astropy.io.fits", path)
    held = Path(path).stat().st_size
    attrs: dict[str, dict[str, Any]] = {"": {}}
    parts = {}
    try:
        # Opened here: of a damaged file astropy would leave its own open.
        with open(path, "rb") as raw:
            _check_fits(fits, raw, path, held)
        with open(path, "rb") as raw, fits.open(raw, memmap=True, lazy_load_hdus=False) as file:
            tables = [i for i, hdu in enumerate(file) if isinstance(hdu, fits.BinTableHDU)]
            for i in tables:
                hdu = file[i]
                base = f"{hdu.name or i}/" if len(tables) > 1 else ""
                width, n_rows = int(hdu.header["NAXIS1"]), int(hdu.header["NAXIS2"])
                end = hdu.fileinfo()["datLoc"] + width * n_rows
                if end > held:
                    raise StoreError(
                        f"{path!r} is truncated: {n_rows} rows of {width} bytes end at byte {end}, "
                        f"the file at {held}"
                    )
                header = {k.lower(): v for k, v in hdu.header.items() if k}
                attrs["" if not base else base[:-1]] = _fits_facts(header)
                for column in hdu.columns:
                    dtype = np.dtype(column.dtype)
                    parts[f"{base}{column.name}"] = Part(
                        path, f"{base}{column.name}", (n_rows, *dtype.shape), dtype.base, 1,
                        read_fits, (i, column.name),
                    )  # fmt: skip
    except StoreError:
        raise
    except Exception as error:  # of a damaged header astropy raises what it stumbles on
        raise StoreError(f"{path!r} cannot be read as FITS ({error}): truncated?") from error
    return Table(path, attrs, parts)


def _check_fits(fits: Any, raw: BinaryIO, path: str, held: int) -> None:
    """See that no header claims more than astropy should make room for.

    Its own eyes read them, so that what is checked is what counts.  Standard: FITS 4.0, 4.4.1 and
    7.3.1.
    """
    begin = 0
    while begin < held:
        raw.seek(begin)
        block = b""
        while not re.match(rb"(?:.{80})*?END {77}", block, re.DOTALL):
            block = raw.read(FITS_BLOCK)
            if raw.tell() - begin > FITS_HEADER:
                raise StoreError(f"{path!r} has a header of over {FITS_HEADER >> 20} MB: damaged?")
            if len(block) < FITS_BLOCK:
                break
        raw.seek(begin)
        try:
            header = fits.Header.fromfile(raw)
        except Exception:
            if begin:  # what astropy warns of, and does without
                return
            raise
        said = {key: header.get(key, n) for key, n in _FITS_SIZES.items()}
        for key in ("NAXIS", "TFIELDS"):
            if not (isinstance(said[key], int) and 0 <= said[key] <= FITS_MOST):
                raise StoreError(
                    f"{path!r} claims {key} = {said[key]!r:.50}; FITS has at most {FITS_MOST}: "
                    "damaged?"
                )
        said |= {f"NAXIS{i + 1}": header.get(f"NAXIS{i + 1}", 0) for i in range(said["NAXIS"])}
        for key, n in said.items():
            if not isinstance(n, int):
                raise StoreError(f"{path!r} claims {key} = {n!r:.50}; expected a whole number")
        sides = [said[f"NAXIS{i + 1}"] for i in range(said["NAXIS"])]
        if header.get("GROUPS") is True and sides[:1] == [0]:
            del sides[0]
        cells = math.prod(sides) if sides else 0
        size = abs(said["BITPIX"]) // 8 * said["GCOUNT"] * (said["PCOUNT"] + cells)
        begin = raw.tell() + -(-max(size, 0) // FITS_BLOCK) * FITS_BLOCK


def _fits_facts(header: dict[str, Any]) -> dict[str, Any]:
    """Keywords of eight capitals as the attributes that other tables have."""
    names = {"boxsize": "box_size", "box_size": "box_size", "redshift": "redshift",
             "omega_m": "Omega_m", "omega_b": "Omega_b", "h": "h", "n_s": "n_s",
             "sigma8": "sigma8"}  # fmt: skip
    return {names[key]: plain(value) for key, value in header.items() if key in names}


def read_fits(part: Part, rows: slice) -> NDArray[Any]:
    """Rows of a column, mapped from the file."""
    fits = io_extra("astropy.io.fits", part.path)
    extension, name = part.where
    try:
        with open(part.path, "rb") as raw, fits.open(raw, memmap=True) as file:
            values = file[extension].data[name][rows]
            # A copy in the byte order of the machine, since the map goes with the file.
            return np.array(values, dtype=values.dtype.newbyteorder("="))
    except Exception as error:  # as above
        raise StoreError(str(error)) from error


def scan_parquet(path: str) -> Table:
    """Columns of a Parquet file; its key-value metadata are the attributes."""
    parquet = io_extra("pyarrow.parquet", path)
    pyarrow = io_extra("pyarrow", path)
    try:
        with parquet.ParquetFile(path) as file:
            meta, schema = file.metadata, file.schema_arrow
            sizes = [meta.row_group(i) for i in range(meta.num_row_groups)]
            for group in sizes:
                if group.total_byte_size > GROUP_BYTES or group.num_rows > GROUP_ROWS:
                    raise StoreError(
                        f"{path!r} has a row group of {group.num_rows} rows, "
                        f"{group.total_byte_size} bytes: too large to be read at once"
                    )
            ends = tuple(np.cumsum([0, *(group.num_rows for group in sizes)]).tolist())
            if min(np.diff(ends), default=0) < 0 or ends[-1] != meta.num_rows:
                raise StoreError(f"{path!r}: row groups of {ends} do not make {meta.num_rows} rows")
            chunk = max((group.num_rows for group in sizes), default=1) or 1
            parts = {}
            for field in schema:
                shape: tuple[int, ...] = (meta.num_rows,)
                kind = field.type
                if pyarrow.types.is_fixed_size_list(kind):
                    shape, kind = (*shape, kind.list_size), kind.value_type
                real = pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind)
                dtype = np.dtype(kind.to_pandas_dtype()) if real else np.dtype(object)
                parts[field.name] = Part(
                    path, field.name, shape, dtype, chunk, read_parquet, (ends,)
                )
            attrs = {
                key.decode(errors="replace"): _number(value)
                for key, value in (meta.metadata or {}).items()
                if key not in (b"ARROW:schema", b"pandas")
            }
    except StoreError:
        raise
    except UNREADABLE as error:
        raise StoreError(f"{path!r} cannot be read as Parquet ({error}): truncated?") from error
    return Table(path, {"": attrs}, parts)


def _number(value: bytes) -> Any:
    try:
        return float(value)
    except ValueError:
        return value.decode(errors="replace")


def read_parquet(part: Part, rows: slice) -> NDArray[Any]:
    """Rows of a column, from the row groups that they lie in."""
    parquet = io_extra("pyarrow.parquet", part.path)
    (ends,) = part.where
    pieces = [np.empty((0, *part.shape[1:]), part.dtype)]
    with parquet.ParquetFile(part.path) as file:
        for i, (low, high) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
            if low >= rows.stop or high <= rows.start:
                continue
            column = file.read_row_group(i, columns=[part.name]).column(0).combine_chunks()
            if column.null_count:
                raise StoreError(f"{column.null_count} values are missing")
            if len(part.shape) > 1:
                column = column.flatten()
            values = column.to_numpy(zero_copy_only=False).reshape(-1, *part.shape[1:])
            if len(values) != high - low:
                raise StoreError(f"a row group holds {len(values)} of {high - low} rows")
            pieces.append(values[max(rows.start - low, 0) : rows.stop - low])
    return np.concatenate(pieces)


def scan_npz(path: str) -> Table:
    """Arrays of an NPZ file; numbers and short strings among them are the attributes."""
    parts, attrs = {}, {}
    try:
        held = Path(path).stat().st_size
        with zipfile.ZipFile(path) as file:
            for info in file.infolist():
                name = info.filename.removesuffix(".npy")
                if name == info.filename:
                    continue
                with file.open(info) as member:
                    shape, fortran, dtype = _npy_header(member)
                    start = member.tell()
                    if dtype.hasobject:
                        continue  # a pickle, which is not opened
                    size = math.prod(shape) * dtype.itemsize
                    check_declared(path, name, size, held)
                    if start + size != info.file_size:
                        raise StoreError(
                            f"{path!r}: {name} declares {size} bytes and holds "
                            f"{info.file_size - start}: truncated or damaged"
                        )
                    if shape == () and dtype.kind in "iufUS" and size <= 1024:
                        attrs[name] = plain(np.frombuffer(member.read(size), dtype)[0])
                        continue
                where = (info.filename, start, fortran and len(shape) > 1)
                parts[name] = Part(path, name, shape, dtype, 1, read_npz, where)
    except StoreError:
        raise
    except Exception as error:  # numpy's parser has errors of its own, and each compression
        raise StoreError(f"{path!r} cannot be read as NPZ ({error}): truncated?") from error
    return Table(path, {"": attrs}, parts)


def _npy_header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(member)
    if version == (1, 0):
        return npy.read_array_header_1_0(member)
    if version == (2, 0):
        return npy.read_array_header_2_0(member)
    raise ValueError(f"version {version} of the NPY format")


def read_npz(part: Part, rows: slice) -> NDArray[Any]:
    """Rows of an array; what comes before them in a compressed one is unpacked and dropped."""
    name, start, fortran = part.where
    n_rows = rows.stop - rows.start
    # Stored column by column, the rows are a piece of each column.
    n_columns = math.prod(part.shape[1:])
    pieces = [(i * part.shape[0] + rows.start, n_rows) for i in range(n_columns)]
    if not fortran:
        pieces = [(rows.start * n_columns, n_rows * n_columns)]
    values = []
    with zipfile.ZipFile(part.path) as file, file.open(name) as member:
        for first, n in pieces:
            member.seek(start + first * part.dtype.itemsize)
            data = member.read(n * part.dtype.itemsize)
            values.append(np.frombuffer(data, part.dtype, n))
    if fortran:
        return np.stack(values, axis=1).reshape(n_rows, *part.shape[1:])
    return values[0].reshape(n_rows, *part.shape[1:])
