"""A saved model over a box: lazily, tile by tile with overlapping halos, on CPU or GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from .conventions import (
    AXES,
    CosmofieldsError,
    DimensionError,
    ModelMismatchError,
    attribute,
    box_facts,
    check_los,
    check_same_grid,
    label,
    listing,
    periodic_grid,
    variable,
)
from .cosmology import redshift_of
from .kernels import tiles
from .linear import as_dataset, linear_velocity
from .unet import FieldModel, load_model

Bias = float | Sequence[float]
# Beyond these relative differences a box is not what the model was trained for.
TOLERANCE = 0.02
REDSHIFT_TOLERANCE = 0.05


def axes_to_los_last(los: str) -> tuple[int, int, int]:
    """Cyclic order of the axes that puts ``los`` last: a rotation, so that vectors stay vectors."""
    last = AXES.index(check_los(los))
    return (last + 1) % 3, (last + 2) % 3, last


def turn(array: Any, order: Sequence[int], vector_channels: int) -> Any:
    """Reorder the axes of (channel, x, y, z), and the components among its last channels."""
    turned = array.transpose(0, *(1 + axis for axis in order))
    if not vector_channels:
        return turned
    first = turned.shape[0] - 3
    return turned[[*range(first), *(first + axis for axis in order)]]


def model_inputs(
    observed: xr.Dataset, target: str, *, density: xr.DataArray | None, bias: Bias | None
) -> Any:
    """Input channels (channel, x, y, z) of a model, in the axes of the box.

    Parameters
    ----------
    observed : Dataset
        With ``halo_density``.
    target : {"density", "velocity"}
    density : DataArray, dims (x, y, z)
        The density that a velocity model sees; not used for a density model.
    bias : float or one a mass bin
        Of the filter of the linear velocity that a velocity model sees.

    Returns
    -------
    numpy or dask array, as ``observed`` is
    """
    halos = variable(observed, "halo_density")
    if target == "density":
        return halos.data
    assert density is not None
    if "linear_velocity" in observed:
        linear = observed["linear_velocity"].transpose("component", *AXES)
    else:
        linear = linear_velocity(observed, bias=bias)
    check_same_grid(halos, density, linear)
    return np.concatenate([halos.data, density.data[None], linear.data])


def check_box(observed: xr.Dataset, card: dict[str, Any]) -> None:
    """Refuse a box unlike those that the model was trained on.

    Raises
    ------
    ModelMismatchError
        Naming every difference, and how to overrule it.
    """
    halos = variable(observed, "halo_density", hint="Paint a catalogue: halos.recon.paint().")
    wanted = card["trained_for"]
    grid = periodic_grid(halos, what="reconstruction")
    wrong = []
    cells = grid.cell_size
    if not np.allclose(cells, wanted["cell_size"], rtol=TOLERANCE):
        right = listing(max(2, round(side / wanted["cell_size"])) for side in grid.lengths)
        wrong.append(
            f"cell size {listing(f'{c:.4g}' for c in cells)} Mpc/h, trained for "
            f"{wanted['cell_size']:.4g} (paint this box with n_grid = {right})"
        )
    density = list(halos.attrs.get("number_density") or [])
    if len(density) != len(wanted["number_density"]) or not np.allclose(
        density, wanted["number_density"], rtol=TOLERANCE
    ):
        wrong.append(
            f"cumulative number densities of the mass bins {density} (h/Mpc)^3, trained for "
            f"{wanted['number_density']} (use select(number_density=...) with these)"
        )
    z = redshift_of(observed)
    if abs(z - wanted["redshift"]) > REDSHIFT_TOLERANCE:
        wrong.append(f"redshift {z:g}, trained for {wanted['redshift']:g}")
    for key in ("weighting", "space"):
        given = halos.attrs.get(key)
        if given != wanted[key]:
            wrong.append(f"{key} {given!r}, trained for {wanted[key]!r}")
    if wrong:
        raise ModelMismatchError(
            f"The model {card['name']!r} was not trained for this box: {'; '.join(wrong)}. "
            "To use it all the same: allow_mismatch=True"
        )


def resolve_device(device: str) -> torch.device:
    """Torch device of ``"auto"`` (CUDA where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise CosmofieldsError(f"device={device!r}; expected 'auto', 'cpu' or 'cuda'") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise CosmofieldsError(f"device={device!r}, but torch finds no CUDA GPU: use 'cpu'")
    return chosen


def apply_model(
    model: FieldModel, inputs: Any, *, tile: int = 128, device: str = "auto", progress: bool = False
) -> Any:
    """Run a model over a periodic box, tile by tile.

    Tiles start at multiples of the network's coarsest stride and bring a halo as wide as its
    receptive field, so that the tiling changes the result by rounding only.

    Parameters
    ----------
    model : FieldModel
    inputs : array, (channel, x, y, z)
        Physical fields, the line of sight last.
    tile : int
        Cells a side of a tile, without its halo.  Less memory, more overlap: at 64 the halos cost
        twice what they cost at 128.
    device : str
    progress : bool
        Show a bar (for numpy input; a lazy result takes dask's own).

    Returns
    -------
    array, (channel, x, y, z)
        numpy for numpy, a lazy dask array for dask.
    """
    shape = inputs.shape[1:]
    if any(n % model.coarsest for n in shape):
        raise DimensionError(
            f"A grid of {shape} cells; expected multiples of {model.coarsest}, the network's "
            "coarsest cell"
        )
    where = resolve_device(device)
    bounds = tiles.plan(shape, tile, model.coarsest)
    places = list(tiles.windows(bounds))
    halo = model.receptive_radius
    if not isinstance(inputs, da.Array):
        out: NDArray[np.float32] | None = None
        for place in _track(places, progress, f"{model.target} network"):
            part = _run_tile(model, tiles.gather(inputs, place, halo), halo, where)
            if out is None:
                out = np.empty((len(part), *shape), np.float32)
            out[(slice(None), *place)] = part
        assert out is not None
        return out

    n_out = 1 if model.target == "density" else 3
    kept = dask.delayed(model, traverse=False, pure=False)
    run = dask.delayed(_run_tile, pure=False)
    blocks = [
        da.from_delayed(
            run(kept, tiles.gather(inputs, place, halo), halo, where),
            (n_out, *(part.stop - part.start for part in place)),
            dtype=np.float32,
        )
        for place in places
    ]
    counts = [len(axis) for axis in bounds]
    nested = [
        [blocks[i : i + counts[2]] for i in range(j, j + counts[1] * counts[2], counts[2])]
        for j in range(0, len(blocks), counts[1] * counts[2])
    ]
    return da.block([nested])


def _run_tile(
    model: FieldModel, inputs: NDArray[np.float32], halo: int, device: torch.device
) -> NDArray[np.float32]:
    if not np.isfinite(inputs).all():
        raise CosmofieldsError(
            "The fields that the network is to see hold NaN or infinite values (were fields of "
            "different grids assigned to one Dataset?)"
        )
    x = torch.from_numpy(np.ascontiguousarray(inputs))[None].to(device)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    # torch's stubs lack this overload of Module.to
    model = model.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    with torch.inference_mode():
        y = model(x)[0]
    inner = (slice(halo, -halo),) * 3 if halo else (slice(None),) * 3
    return y[(slice(None), *inner)].float().cpu().numpy()


def _track(items: Sequence[Any], progress: bool, what: str) -> Any:
    if not progress:
        return items
    from rich.progress import track

    return track(items, description=what)


def _predict(
    model: FieldModel,
    observed: xr.Dataset,
    density: xr.DataArray | None,
    bias: Bias | None,
    options: dict[str, Any],
) -> xr.DataArray:
    """Assemble the inputs, turn the line of sight to the last axis, run, turn back, label."""
    order = axes_to_los_last(attribute(observed, "los"))
    inputs = model_inputs(observed, model.target, density=density, bias=bias)
    vector_in = 3 if model.target == "velocity" else 0
    out = apply_model(model, turn(inputs, order, vector_in), **options)
    back = [int(axis) for axis in np.argsort(order)]
    data = turn(out, back, 3 if model.target == "velocity" else 0)
    if isinstance(data, da.Array):
        data = data.rechunk({0: 1})
    grid = periodic_grid(observed, what="reconstruction")
    facts = {**box_facts(observed), "space": "real"}
    return label(model.target, data[0] if model.target == "density" else data, grid, facts)


def predict_density(
    observed: xr.Dataset,
    model: str | Path = "default",
    *,
    tile: int = 128,
    device: str = "auto",
    allow_mismatch: bool = False,
    progress: bool = False,
) -> xr.DataArray:
    """Real-space matter density from the halos of a redshift-space box (step one).

    Parameters
    ----------
    observed : Dataset
        With ``halo_density`` (mass_bin, x, y, z): the whole periodic box in redshift space.
    model : path or ``"default"``
        Directory of a saved model.
    tile : int
        Cells a side of a tile.
    device : {"auto", "cpu", "cuda"}
    allow_mismatch : bool
        Run on a box whose cell size, tracers or redshift the model was not trained for.
    progress : bool
        Show a bar.

    Returns
    -------
    DataArray, dims (x, y, z)
        ``density`` = 1 + delta, positive; lazy if ``observed`` is.

    Raises
    ------
    ModelMismatchError, MissingVariableError, MissingAttributeError, NotPeriodicError
    """
    network, card = load_model("density", model)
    if not allow_mismatch:
        check_box(observed, card)
    options = {"tile": tile, "device": device, "progress": progress}
    return _predict(network, observed, None, None, options).assign_attrs(model=card["name"])


def predict_velocity(
    observed: xr.Dataset,
    model: str | Path = "default",
    *,
    tile: int = 128,
    device: str = "auto",
    allow_mismatch: bool = False,
    progress: bool = False,
) -> xr.DataArray:
    """Real-space matter velocity from the halos of a redshift-space box (step two).

    Its further inputs are made on the way: the density by :func:`predict_density` unless
    ``observed`` holds ``density``, and the filtered linear velocity with the bias that the model
    carries unless it holds ``linear_velocity``.

    Parameters
    ----------
    observed, model, tile, device, allow_mismatch, progress
        As in :func:`predict_density`.

    Returns
    -------
    DataArray, dims (component, x, y, z)
        ``velocity`` in km/s; lazy if ``observed`` is.

    Raises
    ------
    ModelMismatchError, MissingVariableError, MissingAttributeError, NotPeriodicError
    """
    network, card = load_model("velocity", model)
    if not allow_mismatch:
        check_box(observed, card)
    options: dict[str, Any] = {"tile": tile, "device": device, "progress": progress}
    if "density" in observed:
        density = variable(observed, "density")
    else:
        density = predict_density(observed, model, allow_mismatch=allow_mismatch, **options)
    bias = card["linear_bias"]["mass_bins"]
    velocity = _predict(network, observed, density, bias, options)
    return velocity.assign_attrs(model=card["name"])


def predict(
    observed: xr.Dataset,
    model: str | Path = "default",
    *,
    tile: int = 128,
    device: str = "auto",
    allow_mismatch: bool = False,
    progress: bool = False,
) -> xr.Dataset:
    """Real-space matter density, velocity and momentum from a redshift-space box.

    Parameters
    ----------
    observed, model, tile, device, allow_mismatch, progress
        As in :func:`predict_density`.

    Returns
    -------
    Dataset
        ``density`` = 1 + delta, ``velocity`` in km/s, ``momentum`` = density x velocity in km/s;
        lazy if ``observed`` is.

    Raises
    ------
    ModelMismatchError, MissingVariableError, MissingAttributeError, NotPeriodicError
    """
    options: dict[str, Any] = {
        "tile": tile,
        "device": device,
        "allow_mismatch": allow_mismatch,
        "progress": progress,
    }
    density = predict_density(observed, model, **options)
    with_density = observed.assign(density=density)
    velocity = predict_velocity(with_density, model, **options)
    what = f"predict: model={velocity.attrs['model']}"
    return as_dataset(density, velocity, observed, what)
