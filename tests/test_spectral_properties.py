"""Spectra do not depend on how a field is stored: chunks, order of dims, origin, way of working."""

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmofields.conventions import AXES, COMPONENTS, make_grid
from cosmofields.spectral import multipoles, power_spectrum, spectra, wedges

LENGTHS = (90.0, 60.0, 75.0)
SHAPES = st.sampled_from([(8, 8, 8), (7, 9, 6), (10, 5, 9)])
WINDOWS = st.sampled_from([None, "cic", "cic-aliased"])
STATISTICS = {
    "power": power_spectrum,
    "multipoles": multipoles,
    "wedges": wedges,
    "spectra": lambda first, second, **options: spectra(first, second, ells=(0, 2, 4), **options),
}
statistics = pytest.mark.parametrize("statistic", STATISTICS.values(), ids=STATISTICS)


def pair(shape, vector):
    """Two fields that correlate, of a mean that is not 0."""
    rng = np.random.default_rng(1)
    full = (3, *shape) if vector else shape
    first, more = (rng.standard_normal(full) for _ in range(2))
    dims = ("component", *AXES)[-len(full) :]
    coords = dict(make_grid(shape, LENGTHS).coords())
    coords |= {"component": COMPONENTS} if vector else {}
    attrs = {"box_size": list(LENGTHS), "los": "y"}
    return [
        xr.DataArray(data.astype(np.float32), coords, dims, "density", attrs)
        for data in (first + 1, first + more + 2)
    ]


def same(got, expected):
    """Whether all powers are the same to 1e-6 of the largest, and all else to rounding."""
    assert set(got.variables) == set(expected.variables)
    largest = max(
        float(abs(variable).max())
        for name, variable in expected.data_vars.items()
        if name.startswith(("power", "multipoles"))
    )
    for name, variable in expected.variables.items():
        power = name.startswith(("power", "multipoles"))
        ratio = name in ("relative_deviation", "correlation", "transfer")
        near = 1e-6 * largest if power else 1e-5 if ratio else 1e-12
        assert got[name].dims == variable.dims
        np.testing.assert_allclose(got[name].values, variable.values, rtol=0, atol=near)


@statistics
@settings(max_examples=8)
@given(
    shape=SHAPES,
    vector=st.booleans(),
    window=WINDOWS,
    taper=st.sampled_from([None, 0.4]),
    chunks=st.tuples(*[st.integers(3, 10)] * 3),
    memory=st.sampled_from([3_000, 10**9]),
)
def test_chunks_and_memory(statistic, shape, vector, window, taper, chunks, memory):
    first, second = pair(shape, vector)
    options = {"window": window, "taper": taper}
    cut = dict(zip(AXES, chunks, strict=True))
    with dask.config.set({"cosmofields.memory": memory}):
        got = statistic(first.chunk(cut), second.chunk(z=3), **options)
    same(got, statistic(first, second, **options))


@statistics
@given(
    shape=SHAPES,
    vector=st.booleans(),
    order=st.permutations(AXES),
    at=st.integers(0, 3),
    shift=st.tuples(*[st.integers(-9, 9)] * 3),
    roll_coords=st.booleans(),
)
def test_order_of_dims_and_origin(statistic, shape, vector, order, at, shift, roll_coords):
    fields = pair(shape, vector)
    if vector:
        order.insert(at, "component")
    moves = dict(zip(AXES, shift, strict=True))
    moved = [part.roll(moves, roll_coords=roll_coords).transpose(*order) for part in fields]
    same(statistic(*moved), statistic(*fields))
