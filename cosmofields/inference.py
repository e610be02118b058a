"""A saved model over a box: lazily, tile by tile with overlapping halos, on CPU or GPU."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
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
    FIELDS,
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
from .cosmology import as_cosmology, cosmology_of, redshift_of
from .kernels import tiles
from .linear import as_dataset, linear_velocity
from .unet import FieldModel, load_model

Bias = float | Sequence[float]
# Beyond these relative differences a box is not what the model was trained for.
TOLERANCE = 0.02
REDSHIFT_TOLERANCE = 0.05
_ONE_PASS = threading.Lock()


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


def vector_channels(target: str) -> int:
    """How many of a model's last channels, in and out, are components that turn with the axes."""
    return 3 if FIELDS[target].is_vector else 0


def run_in_box(model: FieldModel, inputs: Any, los: str, **options: Any) -> Any:
    """:func:`apply_model` in the axes of the box: the line of sight is turned last, and back.

    Parameters
    ----------
    model : FieldModel
    inputs : array, (channel, x, y, z)
    los : {"x", "y", "z"}
    **options
        Of :func:`apply_model`.

    Returns
    -------
    array, (channel, x, y, z)
    """
    order = axes_to_los_last(los)
    back = [int(axis) for axis in np.argsort(order)]
    vector = vector_channels(model.target)
    return turn(apply_model(model, turn(inputs, order, vector), **options), back, vector)


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


def check_box(observed: xr.Dataset, card: dict[str, Any], multiple: int = 4) -> None:
    """Refuse a box unlike those that the model was trained on.

    Parameters
    ----------
    observed : Dataset
        With ``halo_density``.
    card : dict
        Of the model.
    multiple : int
        Cells of the network's coarsest level, for the advice on ``n_grid``.

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
        nearest = [
            multiple * max(1, round(side / wanted["cell_size"] / multiple)) for side in grid.lengths
        ]
        given, right = (
            listing(dict.fromkeys(f"{number:.4g}" for number in numbers))
            for numbers in (cells, nearest)
        )
        wrong.append(
            f"cell size {given} Mpc/h, trained for {wanted['cell_size']:.4g} "
            f"(nearest: paint with n_grid = {right})"
        )
    density = list(halos.attrs.get("number_density") or [])
    if len(density) != len(wanted["number_density"]) or not np.allclose(
        density, wanted["number_density"], rtol=TOLERANCE
    ):
        wrong.append(
            f"cumulative number densities of the mass bins {density} (h/Mpc)^3, trained for "
            f"{wanted['number_density']} (use select(number_density=...) with these)"
        )
    z = redshift_of(halos)
    if abs(z - wanted["redshift"]) > REDSHIFT_TOLERANCE:
        wrong.append(f"redshift {z:g}, trained for {wanted['redshift']:g}")
    cosmology, trained = cosmology_of(halos), as_cosmology(wanted["cosmology"])
    for name in ("f", "aH"):
        here, there = (float(getattr(c, name)(z)) for c in (cosmology, trained))
        if abs(here / there - 1) > 2 * TOLERANCE:
            wrong.append(
                f"{name} = {here:.3g} at this redshift, {there:.3g} in the model's universe"
            )
    advice = {
        "weighting": f"paint(weighting={wanted['weighting']!r})",
        "space": "to_redshift_space() before paint(), or from_arrays(..., los='z')",
    }
    for key, how in advice.items():
        value = halos.attrs.get(key)
        if value != wanted[key]:
            wrong.append(f"{key} {value!r}, trained for {wanted[key]!r} ({how})")
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
        Cells a side of a tile, without its halo.  At 128 a pass takes about 3 GB; at 64 less than
        1 GB, and twice the time for the halos' sake.
    device : str
    progress : bool
        Show a bar (for numpy input; a lazy result takes dask's own).

    Returns
    -------
    array, (channel, x, y, z)
        numpy for numpy, a lazy dask array for dask.
    """
    shape = inputs.shape[1:]
    if inputs.shape[0] != model.n_in:
        raise DimensionError(
            f"{inputs.shape[0]} input channels; the {model.target} model takes {model.n_in} "
            f"({model.n_bins} mass bins)"
        )
    if any(n % model.coarsest for n in shape):
        near = listing(model.coarsest * max(1, round(n / model.coarsest)) for n in shape)
        raise DimensionError(
            f"A grid of {listing(shape)} cells; expected multiples of {model.coarsest}, the "
            f"network's coarsest cell: paint with n_grid = {near}"
        )
    if tile < model.coarsest:
        raise DimensionError(f"tile={tile}; expected at least {model.coarsest} cells, e.g. 128")
    where = resolve_device(device)
    bounds = tiles.plan(shape, tile, model.coarsest)
    places = list(tiles.windows(bounds))
    halo = model.receptive_radius
    if not isinstance(inputs, da.Array):
        out = np.empty((model.n_out, *shape), np.float32)
        for place in track(places, progress, f"{model.target} network"):
            part = tiles.gather(inputs, place, halo)
            out[(slice(None), *place)] = _run_tile(model, part, halo, where)
        return out

    kept = dask.delayed(model, traverse=False, pure=False)
    run = dask.delayed(_run_tile, pure=False)
    blocks = [
        da.from_delayed(
            run(kept, tiles.gather(inputs, place, halo), halo, where),
            (model.n_out, *(part.stop - part.start for part in place)),
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
    x = torch.from_numpy(np.ascontiguousarray(inputs, np.float32))[None].to(device)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    # torch's stubs lack this overload of Module.to
    model = model.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    # One pass at a time: torch takes all cores for it, and a second doubles the memory.
    with _ONE_PASS, torch.inference_mode():
        y = model(x)[0]
    inner = (slice(halo, -halo),) * 3 if halo else (slice(None),) * 3
    return y[(slice(None), *inner)].float().cpu().numpy()


def track(items: Sequence[Any], progress: bool, what: str) -> Iterable[Any]:
    """The items, with a bar on the terminal if ``progress`` asks for one."""
    if not progress:
        return items
    from rich.progress import track as bar

    return bar(items, description=what)


def _predict(
    model: FieldModel,
    observed: xr.Dataset,
    density: xr.DataArray | None,
    bias: Bias | None,
    options: dict[str, Any],
) -> xr.DataArray:
    """Assemble the inputs, run, label."""
    inputs = model_inputs(observed, model.target, density=density, bias=bias)
    data = run_in_box(model, inputs, attribute(observed, "los"), **options)
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
        check_box(observed, card, network.coarsest)
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
        check_box(observed, card, network.coarsest)
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
