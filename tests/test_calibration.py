"""Restored power and errors per cell: fits that find what was put in, and their use."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import xarray as xr

import cosmofields as cf
from cosmofields import calibration
from cosmofields.conventions import (
    CosmofieldsError,
    label,
    make_grid,
)
from cosmofields.statistics import rms_error

SIDE, N = 150.0, 32
GRID = make_grid(N, [SIDE] * 3)
FACTS = {"box_size": SIDE, "los": "y", "redshift": 0.59}


def dataset(density: Any, velocity: Any) -> xr.Dataset:
    fields = {"density": density, "velocity": velocity, "momentum": density * velocity}
    arrays = {name: label(name, np.float32(data), GRID, FACTS) for name, data in fields.items()}
    return xr.Dataset(arrays, attrs=FACTS)


def lognormal(rng: np.random.Generator, scatter: float, shape: tuple[int, ...]) -> Any:
    """Numbers of mean 1."""
    return np.exp(scatter * rng.standard_normal(shape) - scatter**2 / 2)


@pytest.fixture(scope="module")
def pair() -> tuple[xr.Dataset, xr.Dataset]:
    """Predicted and true fields: scatter 0.5 in log density; 20 km/s across y and 40 along it."""
    rng = np.random.default_rng(5)
    smooth = scipy.ndimage.gaussian_filter(rng.standard_normal((N, N, N)), 2, mode="wrap")
    density = lognormal(rng, 0.3, (N, N, N)) * np.exp(smooth / smooth.std())
    velocity = 300 * scipy.ndimage.gaussian_filter(
        rng.standard_normal((3, N, N, N)), (0, 2, 2, 2), mode="wrap"
    )
    sigma = np.array([20.0, 40.0, 20.0])[:, None, None, None]
    true = dataset(
        density * lognormal(rng, 0.5, density.shape),
        velocity + sigma * rng.standard_normal(velocity.shape),
    )
    return dataset(density, velocity), true


def cards(measured: calibration.Measurement) -> dict[str, Any]:
    return {
        target: {"name": target, "calibration": {"symmetries": measured.symmetries, **table}}
        for target, table in measured.tables().items()
    }


@pytest.fixture(scope="module")
def fitted(pair: tuple[xr.Dataset, xr.Dataset]) -> dict[str, Any]:
    measured = calibration.Measurement([1])
    measured.add(1, *pair)
    return cards(measured)


def restoration(ratio: Any, correlation: Any, symmetries: Any = (1,)) -> dict[str, Any]:
    table = {
        "k": [0.1, 0.2, 0.4, 0.8],
        "power_ratio": {"all": ratio},
        "correlation": {"all": correlation},
    }
    found = {"symmetries": [*symmetries], "restoration": {"density": table}}
    return {"name": "made", "calibration": found}


# --- spectra ---


def test_gain_is_the_root_of_the_ratio_where_fields_agree() -> None:
    card = restoration([[1.0, 0.81, 0.25, 0.01]], [[1.0, 0.9, 0.6, 0.49]])
    g = calibration.gain("density", card)
    k = np.array([0.0, 0.01, 0.1, 0.2, 0.4, 0.8, 10.0])
    np.testing.assert_allclose(g(k), [1, 1, 1, 1 / 0.9, 2, 1, 1], rtol=1e-6)
    # Between the nodes, log g is linear in log k.
    assert g(np.array([np.sqrt(0.2 * 0.4)]))[0] == pytest.approx(np.sqrt(2 / 0.9))
    # Beyond the first bin that is too far from the truth, none is restored.
    gap = restoration([[0.25] * 4], [[1.0, 0.4, 0.6, 0.6]])
    np.testing.assert_allclose(calibration.gain("density", gap)(k[3:]), 1)


def test_tables_are_linear_in_one_over_n() -> None:
    card = restoration([[0.9] * 4, [0.5] * 4], [[1.0] * 4] * 2, (1, 8))
    for n in (1, 2, 4, 8, 16):
        ratio = 0.5 + 0.4 * (1 / n - 1 / 8) / (1 - 1 / 8)
        g = calibration.gain("density", card, symmetries=n)(np.array([0.3]))[0]
        assert g == pytest.approx(ratio**-0.5)


@pytest.mark.parametrize("name", ["density", "velocity", "momentum"])
def test_restored_power_is_the_true_one(name: str) -> None:
    # The prediction lacks power as a smoothed field does, more of it along the line of sight.
    rng = np.random.default_rng(0)
    white = rng.standard_normal((4, N, N, N))

    def smoothed(field: Any, radius: float) -> Any:
        return scipy.ndimage.gaussian_filter(field, radius, mode="wrap")

    true = dataset(1 + 0.1 * white[0], 100 * white[1:])
    v = [smoothed(100 * one, r) for one, r in zip(white[1:], (0.3, 0.4, 0.3), strict=True)]
    made = dataset(1 + 0.1 * smoothed(white[0], 0.4), np.stack(v))
    measured = calibration.Measurement([1])
    measured.add(1, made, true)
    card = cards(measured)["density" if name == "density" else "velocity"]
    restored = calibration.restore(made[name], card)
    assert restored.attrs["estimator"] == "power restored"
    assert restored.dtype == np.float32
    np.testing.assert_allclose(
        restored.mean(("x", "y", "z")), made[name].mean(("x", "y", "z")), rtol=1e-5, atol=1e-3
    )
    before = cf.spectra(made[name], true[name], edges=calibration.K_EDGES[:-3])
    after = cf.spectra(restored, true[name], edges=calibration.K_EDGES[:-3])
    assert np.nanmax(abs(before.relative_deviation)) > 0.1
    assert np.nanmax(abs(after.relative_deviation)) < 0.02


@pytest.mark.parametrize("memory", ["2 GB", "1 MB"])
def test_restored_lazily(
    pair: tuple[xr.Dataset, xr.Dataset], fitted: Any, memory: str, count_computes: Any
) -> None:
    import dask

    velocity = pair[0]["velocity"]
    expected = calibration.restore(velocity, fitted["velocity"])
    with dask.config.set({"cosmofields.memory": memory}), count_computes() as computes:
        lazy = calibration.restore(velocity.chunk(x=16, y=16), fitted["velocity"])
        assert computes.total == 0
    scale = float(velocity.std())
    np.testing.assert_allclose(lazy.compute(), expected, atol=1e-5 * scale)


# --- errors ---


def test_environment_is_a_gaussian_average(pair: tuple[xr.Dataset, xr.Dataset]) -> None:
    density = pair[0]["density"]
    smooth = calibration.environment(density, 9.0)
    cells = 9.0 / GRID.cell_size[0]
    expected = scipy.ndimage.gaussian_filter(
        density.values.astype(np.float64), cells, mode="wrap", truncate=8
    )
    np.testing.assert_allclose(smooth, expected, rtol=2e-3)


def test_errors_are_those_that_were_put_in(
    pair: tuple[xr.Dataset, xr.Dataset], fitted: dict[str, Any]
) -> None:
    made, true = pair
    density = made["density"]
    velocity_error = calibration.velocity_error(density, fitted["velocity"])
    assert velocity_error.attrs["units"] == "km/s"
    assert velocity_error.dims == made["velocity"].dims
    for component, sigma in zip(velocity_error, (20, 40, 20), strict=True):
        assert float(abs(component / sigma - 1).max()) < 0.1
    density_error = calibration.density_error(density, fitted["density"])
    relative = np.sqrt(np.expm1(0.5**2))
    assert float(abs(density_error / density / relative - 1).max()) < 0.15
    for name, error in (("density", density_error), ("velocity", velocity_error)):
        for sigmas, share in ((1, 0.6827), (1.96, 0.95)):
            low, high = calibration.interval(made[name], error, sigmas)
            inside = ((true[name] >= low) & (true[name] <= high)).mean()
            assert float(inside) == pytest.approx(share, abs=0.01)


def test_interval_of_a_density_is_that_of_a_lognormal() -> None:
    rng = np.random.default_rng(2)
    numbers = 3 * lognormal(rng, 0.8, (200_000,))
    density = xr.DataArray(3.0, name="density")
    error = xr.DataArray(3 * np.sqrt(np.expm1(0.64)), name="density_error")
    assert float(error) == pytest.approx(numbers.std(), rel=0.05)
    low, high = calibration.interval(density, error)
    quantiles = np.quantile(numbers, [0.1587, 0.8413])
    np.testing.assert_allclose([float(low), float(high)], quantiles, rtol=0.02)


def test_errors_lazily(pair: Any, fitted: Any, count_computes: Any) -> None:
    density = pair[0]["density"]
    chunked = density.chunk(x=16)
    for name in ("density", "velocity"):
        of = getattr(calibration, f"{name}_error")
        with count_computes() as computes:
            lazy = of(chunked, fitted[name])
            assert computes.total == 0
        assert lazy.chunks
        np.testing.assert_allclose(lazy.compute(), of(density, fitted[name]), rtol=1e-4)


@pytest.mark.parametrize("lazily", [False, True], ids=["eager", "lazy"])
def test_no_lognormal_has_a_mean_that_is_not_positive(pair: Any, fitted: Any, lazily: bool) -> None:
    # As the paper's network may say, which is linear at its end.
    made, true = pair
    density = made["density"].copy(data=made["density"].values.copy())
    density[0, 0] = -0.1
    density[0, 1] = 0.0
    given = density.chunk(x=16) if lazily else density
    error = calibration.density_error(given, fitted["density"]).compute()
    assert np.isnan(error[0, :2]).all()
    assert (error.values.ravel()[2 * N :] > 0).all()
    low, high = calibration.interval(density, error)
    inside = (true["density"] >= low) & (true["density"] <= high)
    assert not inside[0, :2].any()
    assert float(inside.mean()) == pytest.approx(0.6827, abs=0.01)
    # Such cells are left out of the table: the others' stays what it was.
    measured = calibration.Measurement([1])
    measured.add(1, made.assign(density=density), true)
    again, before = (c["density"]["calibration"]["error"] for c in (cards(measured), fitted))
    assert again["density"] == before["density"]
    np.testing.assert_allclose(again["log_error"], before["log_error"], rtol=0.01)


@pytest.mark.parametrize("factor", [0.3, 1.1, 2.0])
def test_factor_of_a_lognormal(factor: float) -> None:
    rng = np.random.default_rng(1)
    s = rng.uniform(0.2, 0.4, 100_000)
    log_ratio = factor * s * rng.standard_normal(s.size) - (factor * s) ** 2 / 2
    found = calibration.lognormal_factor(log_ratio, s)
    assert found == pytest.approx(factor, rel=0.01)
    # Far above what a lognormal of that mean can be: no factor will do, and none is made up.
    with pytest.raises(CosmofieldsError, match="No factor up to 8"):
        calibration.lognormal_factor(log_ratio + 3, s)


def test_rescaled_errors_say_by_what(fitted: dict[str, Any]) -> None:
    copy = json.loads(json.dumps(fitted))
    calibration.rescale(copy, "along", 0, 0.9)
    before, after = (c["velocity"]["calibration"]["error"]["error"] for c in (fitted, copy))
    np.testing.assert_allclose(after["along"], 0.9 * np.array(before["along"]), rtol=1e-4)
    assert after["across"] == before["across"]
    assert copy["velocity"]["calibration"]["factors"] == {"along": [0.9]}


# --- the mean of the true density ---


def biased_pair(seed: int) -> tuple[Any, Any]:
    """A predicted density, and a true one whose mean is 0.98 x prediction^1.15 there."""
    rng = np.random.default_rng(seed)
    density = lognormal(rng, 0.8, (N, N, N))
    mean = 0.98 * density**1.15
    return np.float32(density), np.float32(mean * lognormal(rng, 0.3, density.shape))


@pytest.fixture(scope="module")
def biased() -> dict[str, Any]:
    """Card of a density model whose mean was found on such pairs."""
    measured = calibration.MeanMeasurement()
    for seed in range(4):
        measured.add(1, *biased_pair(seed))
    return {"name": "biased", "calibration": {"symmetries": [1], "mean": measured.table()}}


def test_the_mean_is_the_one_that_was_put_in(biased: dict[str, Any]) -> None:
    density, true = biased_pair(9)
    made = calibration.recalibrate(label("density", density, GRID, FACTS), biased)
    assert made.dtype == np.float32
    assert made.attrs["recalibrated"] == calibration.mean_name(biased)
    inside = (density > 0.3) & (density < 4)
    np.testing.assert_allclose(made.values[inside], 0.98 * density[inside] ** 1.15, rtol=0.02)
    error = [rms_error(one, made.copy(data=true)) for one in (made, made.copy(data=density))]
    assert error[0] < error[1]
    order = np.argsort(density.ravel())
    assert (np.diff(made.values.ravel()[order]) >= 0).all()


def test_recalibration_can_be_undone(biased: dict[str, Any], count_computes: Any) -> None:
    density = label("density", biased_pair(3)[0], GRID, FACTS)
    made = calibration.recalibrate(density, biased)
    assert float(abs(made / density - 1).max()) > 0.1
    back = calibration.network_density(made, biased)
    np.testing.assert_allclose(back, density, rtol=2e-6)
    assert "recalibrated" not in back.attrs
    # By whatever name the model goes now; by another table, which is made anew, it stays.
    renamed = calibration.network_density(made, {**biased, "name": "other"})
    np.testing.assert_array_equal(renamed, back)
    assert calibration.network_density(density, biased) is density
    other = json.loads(json.dumps(biased))
    other["calibration"]["mean"]["ratio"][0][0] *= 1.01
    for card in (other, {}):
        assert calibration.network_density(made, card) is made
    with count_computes() as computes:
        lazy = calibration.recalibrate(density.chunk(x=16), biased)
        assert computes.total == 0
    np.testing.assert_array_equal(lazy.compute(), made)


@pytest.mark.parametrize("n", [1, 2, 4, 8, 16])
def test_the_mean_can_be_undone_under_any_symmetries(n: int) -> None:
    # Nearly flat where 8 were averaged, steep in one pass: beyond 8 the line would fall.
    table = {"density": [0.5, 1.0, 2.0], "ratio": [[1.0, 1.0, 1.0], [1.4, 1.0, 0.52]]}
    card = {"name": "made", "calibration": {"symmetries": [1, 8], "mean": table}}
    values = np.linspace(0.3, 3, 8 * 8 * 8, dtype=np.float32).reshape(8, 8, 8)
    density = label("density", values, make_grid(8, [SIDE] * 3), FACTS)
    made = calibration.recalibrate(density, card, symmetries=n)
    assert (np.diff(made.values.ravel()) > 0).all()
    back = calibration.network_density(made, card, symmetries=n)
    np.testing.assert_allclose(back, density, rtol=1e-4)


def test_too_few_cells_for_a_mean() -> None:
    measured = calibration.MeanMeasurement()
    measured.add(1, *(np.float32(np.linspace(0.1, 3, 1000)) for _ in "pt"))
    with pytest.raises(CosmofieldsError, match="has 500 cells: larger boxes"):
        measured.table()


def test_a_table_that_would_fall_is_made_monotone() -> None:
    rng = np.random.default_rng(0)
    density = np.float32(lognormal(rng, 0.8, (N, N, N)))
    measured = calibration.MeanMeasurement()
    measured.add(1, density, np.float32(1 / density))
    table = measured.table()
    rise = np.diff(np.log(np.multiply(table["density"], table["ratio"][0])))
    assert (rise > 0).all()
