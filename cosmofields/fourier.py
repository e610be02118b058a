"""Fourier transforms of periodic fields, in memory or by pencils out of core.

Convention: delta(k) = sum_x delta(x) exp(-i k.x), k in h/Mpc with the 2 pi in it; single precision,
on the half-space kz >= 0 of a real field.  An odd derivative at an axis' Nyquist frequency is zero,
as the derivative of a real field must be.

Both ways take the same three steps: slabs of x-planes are transformed along y and z, strips of
ky-rows along x, and a kernel of ``kernels.modes`` works on the strip.  In memory, threads share one
buffer, and slabs and strips are as large as a cache; out of core, each is a chunk, and Dask turns
slabs into strips.  :func:`~cosmofields.lazy.fits` chooses for a lazy field.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import scipy.fft
import xarray as xr
from numpy.typing import NDArray

from .conventions import (
    DimensionError,
    Grid,
    attribute,
    box_facts,
    box_lengths,
    canonical,
    make_grid,
    periodic_grid,
)
from .lazy import CHUNK, chunk_shape, fits, machine, n_threads, whole_box

if TYPE_CHECKING:
    from .kernels.modes import Modes, Planes, Waves

K_AXES = ("kx", "ky", "kz")
# Bytes of a slab of planes at most: large enough to hide the cost of a task, and a chunk beside.
_CHUNKED = 2**26
_MODES, _FIELD = (np.empty((0, 0, 0), dtype) for dtype in (np.complex64, np.float32))


# --- through k-space, for any room ---


def through_modes(
    fields: Sequence[Planes | da.Array],
    grid: Grid,
    outputs: Sequence[Callable[..., None] | None],
    *,
    what: str,
    combine: Callable[..., None] | None = None,
    extras: Sequence[Any] = (),
) -> Any:
    """Take real fields to k-space, work on their modes there, and come back.

    Parameters
    ----------
    fields : arrays (x, y, z), or other :class:`Planes`
        One dask array among them makes the result lazy.
    grid : Grid
    outputs : sequence of callables, or None
        ``output(modes, out, waves)`` writes the modes of one real field into ``out``, mode by mode,
        for the last one of ``modes`` may be the ``out`` of the last output.  None stands for the
        combined modes themselves, and comes last.
    what : str
        For the log.
    combine : callable, optional
        ``combine(modes, waves, *extras)`` leaves all that the outputs need in the first modes,
        which they then see alone.
    extras : sequence of arrays, 1-D

    Returns
    -------
    array, (output, x, y, z), float32
    """
    kernel = partial(
        _in_memory, n_fields=len(fields), grid=grid, outputs=tuple(outputs), combine=combine
    )
    if not _any_lazy(fields):
        return kernel(*fields, *map(np.asarray, extras))
    # Chunks, whole fields and their modes; results as a whole and what is made of their chunks.
    if fits(_field_bytes(grid) * (3 * len(fields) + 2 * len(outputs)), what):
        return whole_box(kernel, *fields, *extras, shape=(len(outputs), *grid.shape))
    modes = _strips(fields, grid, combine, extras)
    return da.stack(
        [
            _real(_on_strips(partial(_leave, output=out), "xyz", modes, grid), grid)
            for out in outputs
        ]
    )


def sum_modes(
    groups: Sequence[Sequence[Any]],
    grid: Grid,
    kernel: Callable[[Sequence[Modes], Waves], NDArray[np.float64]],
    *,
    what: str,
) -> NDArray[np.float64]:
    """Sum what ``kernel(modes, waves)`` returns of each strip, over strips and groups, at once.

    Parameters
    ----------
    groups : sequence of sequences of arrays (x, y, z)
        Fields whose modes the kernel sees together; the sum of a vector takes one a component.
    grid : Grid
    kernel : callable
        Returns float64 sums, which are added in a fixed order.
    what : str
        For the log.

    Returns
    -------
    array
    """
    gathered = partial(_sum_in_memory, grid=grid, kernel=kernel)
    if not any(_any_lazy(fields) for fields in groups):
        return np.sum([gathered(*fields) for fields in groups], axis=0)
    n_fields = sum(map(len, groups))
    if fits(_field_bytes(grid) * (2 * n_fields + len(groups[0])), what):
        tasks = [dask.delayed(gathered, pure=True)(*fields) for fields in groups]
    else:
        tasks = []
        for fields in groups:
            strips = [_strips([field], grid)[0] for field in fields]
            blocks = [part.to_delayed().ravel() for part in (_rows(strips[0]), *strips)]
            add = partial(dask.delayed(_sum_of_strip, pure=True), grid=grid, kernel=kernel)
            tasks += [add(*parts) for parts in zip(*blocks, strict=True)]
    # In one call: the components of a lazy vector mostly share their work.
    return np.sum(dask.compute(*tasks), axis=0)


def _in_memory(
    *arrays: Any,
    n_fields: int,
    grid: Grid,
    outputs: Sequence[Callable[..., None] | None],
    combine: Callable[..., None] | None,
) -> NDArray[np.float32]:
    from .kernels.modes import backward, forward

    def finish(strips: Sequence[Modes], waves: Waves) -> None:
        if combine is not None:
            combine(strips, waves, *arrays[n_fields:])

    modes, _ = forward(arrays[:n_fields], grid, finish, n_threads())
    if combine is not None:
        del modes[1:]
    return backward(modes, grid, outputs, n_threads())


def _sum_in_memory(*fields: Planes, grid: Grid, kernel: Any) -> NDArray[np.float64]:
    from .kernels.modes import forward

    return np.sum(forward(fields, grid, kernel, n_threads())[1], axis=0)


# --- out of core: a task writes to no chunk of another, for Dask may need it again ---


def _width(n: int, nbytes: int) -> int:
    """Planes or rows of ``nbytes`` each in a chunk; a part of :data:`CHUNK`, so that stores fit."""
    found = machine()
    limit = min(_CHUNKED, found.memory // found.threads // 4)
    width = CHUNK
    while width > 1 and width * nbytes > limit:
        width //= 2
    return min(width, n)


def _slabs_and_strips(grid: Grid) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Shapes of the chunks of modes."""
    nx, ny, nz = grid.shape
    half = nz // 2 + 1
    return (_width(nx, 4 * ny * nz), ny, half), (nx, _width(ny, 4 * nx * nz), half)


def _cut(array: da.Array, chunks: Any, *, method: str = "tasks") -> da.Array:
    """Rechunk in one step: those between would hold more than a slab."""
    return array.rechunk(chunks, method=method, threshold=np.inf)


def _turn(modes: da.Array, chunks: tuple[int, int, int]) -> da.Array:
    """Cut slabs into pieces of strips, or strips into those of slabs, for a task to put together.

    Between processes they go over the workers' disks, which holds less, and come as a whole.
    """
    if machine().remote:
        return _cut(modes, chunks, method="p2p")
    return _cut(modes, {i: n for i, n in enumerate(chunks) if n < modes.shape[i]})


def _strips(
    fields: Sequence[Any],
    grid: Grid,
    combine: Callable[..., None] | None = None,
    extras: Sequence[Any] = (),
) -> list[da.Array]:
    """Modes of the fields in strips; of all together if they are combined."""
    from .kernels.modes import rfft_planes

    slab, strip = _slabs_and_strips(grid)
    turned = []
    for field in fields:
        slabs = _cut(da.asarray(field), {0: slab[0]})
        axes = {"b": slab[1], "c": slab[2]}
        planes = da.blockwise(
            rfft_planes, "xbc", slabs, "xyz", new_axes=axes, concatenate=True, meta=_MODES
        )
        turned.append(_turn(planes, strip))
    groups = [turned] if combine is not None else [[pieces] for pieces in turned]
    enter = partial(_enter, combine=combine)
    axes = {"a": grid.shape[0]}
    return [_on_strips(enter, "ayz", group, grid, extras, new_axes=axes) for group in groups]


def _on_strips(
    kernel: Callable[..., Modes],
    out: str,
    strips: Sequence[da.Array],
    grid: Grid,
    extras: Sequence[Any] = (),
    **options: Any,
) -> da.Array:
    """Strips that ``kernel(rows, *strips, *extras)`` makes of strips, or of their pieces."""
    pairs: list[Any] = [_rows(strips[0]), "y"]
    for strip in strips:
        pairs += [strip, "xyz"]
    for letter, extra in zip("mn", extras, strict=False):
        pairs += [da.asarray(extra).rechunk(-1), letter]
    shared = {"n_fields": len(strips), "grid": grid, "concatenate": True, "meta": _MODES}
    return da.blockwise(kernel, out, *pairs, **shared, **options)


def _rows(strips: da.Array) -> da.Array:
    """Indices of ky, by which a task knows its window."""
    return da.arange(strips.shape[1], chunks=(strips.chunks[1],))


def _window(rows: NDArray[np.int64], grid: Grid) -> Waves:
    from .kernels.modes import waves

    return waves(grid.shape, grid.lengths, slice(int(rows[0]), int(rows[-1]) + 1))


def _enter(rows: NDArray[np.int64], *arrays: Any, n_fields: int, grid: Grid, combine: Any) -> Modes:
    # Put together for this task alone, which may write to them.
    strips = [scipy.fft.fft(strip, axis=0, overwrite_x=True) for strip in arrays[:n_fields]]
    if combine is not None:
        combine(strips, _window(rows, grid), *arrays[n_fields:])
    return strips[0]


def _leave(
    rows: NDArray[np.int64], *strips: Modes, n_fields: int, grid: Grid, output: Any = None
) -> Modes:
    if output is None:
        return scipy.fft.ifft(strips[0], axis=0)
    out = np.empty_like(strips[0])
    output(strips, out, _window(rows, grid))
    return scipy.fft.ifft(out, axis=0, overwrite_x=True)


def _real(strips: da.Array, grid: Grid) -> da.Array:
    """Real field of strips that are back from k along x."""
    from .kernels.modes import irfft_planes

    _, ny, nz = grid.shape
    back = partial(irfft_planes, nz=nz, overwrite=True)
    pieces = _turn(strips, _slabs_and_strips(grid)[0])
    axes = {"b": ny, "c": nz}
    slabs = da.blockwise(back, "xbc", pieces, "xyz", new_axes=axes, concatenate=True, meta=_FIELD)
    return _cut(slabs, chunk_shape(grid.shape))


def _sum_of_strip(
    rows: NDArray[np.int64], *strips: Modes, grid: Grid, kernel: Callable[..., NDArray[np.float64]]
) -> NDArray[np.float64]:
    return kernel(strips, _window(rows, grid))


def _field_bytes(grid: Grid) -> int:
    """Of a field, and nearly of its modes."""
    return 4 * int(np.prod(grid.shape))


def _any_lazy(arrays: Sequence[Any]) -> bool:
    return any(isinstance(array, da.Array) for array in arrays)


# --- labelled ---


def transform(field: xr.DataArray) -> xr.DataArray:
    """Fourier modes of a field: f(k) = sum_x f(x) exp(-i k.x).

    Parameters
    ----------
    field : DataArray, dims (x, y, z)
        Whole periodic box; x counts from its first node.

    Returns
    -------
    DataArray, dims (kx, ky, kz), complex64
        The half-space kz >= 0, in the order of ``scipy.fft.rfftn``; k in h/Mpc, units of ``field``;
        ``attrs["n_grid"]`` are its cells.  Lazy for a lazy input; out of core, in strips of ky.

    Raises
    ------
    DimensionError, MissingAttributeError, NotPeriodicError
        If ``field`` is no whole periodic box.
    """
    field = canonical(field)
    grid = periodic_grid(field, what="transform")
    nx, ny, nz = grid.shape
    kernel = partial(_transformed, grid=grid)
    data: Any
    if not _any_lazy([field.data]):
        data = kernel(field.data)
    elif fits(3 * _field_bytes(grid), "transform"):
        data = whole_box(kernel, field.data, shape=(nx, ny, nz // 2 + 1), dtype=np.complex64)
    else:
        (data,) = _strips([field.data], grid)
    freqs = (scipy.fft.fftfreq, scipy.fft.fftfreq, scipy.fft.rfftfreq)
    return xr.DataArray(
        data,
        dims=K_AXES,
        coords={
            axis: (axis, 2 * np.pi * freq(n, length / n), {"units": "h/Mpc"})
            for axis, freq, n, length in zip(K_AXES, freqs, grid.shape, grid.lengths, strict=True)
        },
        name=field.name,
        attrs={
            **box_facts(field),
            "n_grid": list(grid.shape),
            "units": field.attrs.get("units", "1"),
            "long_name": f"Fourier modes of {title(field)}",
        },
    )


def _transformed(field: NDArray[np.floating], grid: Grid) -> Modes:
    from .kernels.modes import forward

    (modes,), _ = forward([field], grid, lambda strips, waves: None, n_threads())
    return modes


def inverse(modes: xr.DataArray) -> xr.DataArray:
    """Real field of Fourier modes, the inverse of :func:`transform`.

    Parameters
    ----------
    modes : DataArray, dims (kx, ky, kz)
        The half-space as :func:`transform` returns it, with ``n_grid`` and ``box_size``.

    Returns
    -------
    DataArray, dims (x, y, z), float32
        In the units of ``modes``; node i at i L / N.  Lazy for a lazy input.

    Raises
    ------
    DimensionError, MissingAttributeError
        If ``modes`` are not the half-space of a field of ``n_grid`` cells.
    """
    if set(modes.dims) != set(K_AXES):
        raise DimensionError(f"modes have dims {modes.dims}; expected {K_AXES}: see transform")
    modes = modes.transpose(*K_AXES)
    nx, ny, nz = (int(n) for n in attribute(modes, "n_grid"))
    half = (nx, ny, nz // 2 + 1)
    if modes.shape != half:
        raise DimensionError(
            f"modes have the shape {modes.shape}; expected {half}, that of n_grid={[nx, ny, nz]}"
        )
    grid = make_grid((nx, ny, nz), box_lengths(modes))
    kernel = partial(_inverted, grid=grid)
    data: Any
    if not _any_lazy([modes.data]):
        data = kernel(modes.data)
    elif fits(3 * _field_bytes(grid), "inverse"):
        data = whole_box(kernel, modes.data, shape=grid.shape)
    else:
        strips = _cut(modes.data, _slabs_and_strips(grid)[1])
        data = _real(_on_strips(_leave, "xyz", [strips], grid), grid)
    return xr.DataArray(
        data,
        dims=("x", "y", "z"),
        coords=grid.coords(),
        name=modes.name,
        attrs={
            **box_facts(modes),
            "units": modes.attrs.get("units", "1"),
            "long_name": title(modes).removeprefix("Fourier modes of "),
        },
    )


def _inverted(modes: Modes, grid: Grid) -> NDArray[np.float32]:
    from .kernels.modes import backward

    return backward([modes.astype(np.complex64)], grid, [None], n_threads())[0]


def title(field: xr.DataArray) -> str:
    """What to call a field in the ``long_name`` of another."""
    return str(field.attrs.get("long_name", field.name or "field"))
