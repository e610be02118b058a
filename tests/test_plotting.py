"""Figures of synthetic fields: what they show, and that they leave nothing behind."""

import subprocess
import sys

import numpy as np
import pytest
import scipy.fft
import xarray as xr

matplotlib = pytest.importorskip("matplotlib")

from cosmofields.conventions import (  # noqa: E402
    DimensionError,
    GridMismatchError,
    MissingExtraError,
    MissingVariableError,
    label,
    make_grid,
)
from cosmofields.evaluation import evaluate  # noqa: E402
from cosmofields.plotting import plot_joint, plot_slices, plot_spectra  # noqa: E402

N, BOX = 32, 200.0


def gaussian(seed):
    """A Gaussian random field of unit variance with a red spectrum, and its displacement."""
    k = np.stack(np.meshgrid(*[2 * np.pi * scipy.fft.fftfreq(N, BOX / N)] * 3, indexing="ij"))
    k2 = (k**2).sum(0)
    k2[0, 0, 0] = np.inf
    white = scipy.fft.fftn(np.random.default_rng(seed).standard_normal((N,) * 3))
    modes = white * k2**-0.6 * np.exp(-k2 * 16)
    delta = scipy.fft.ifftn(modes).real
    v = scipy.fft.ifftn(1j * k / k2 * modes, axes=(1, 2, 3)).real
    return delta / delta.std(), v / v.std()


def version(delta, v):
    attrs = {"box_size": BOX, "redshift": 0.59, "los": "z", "space": "real", "periodic": True}
    grid = make_grid(N, [BOX] * 3)
    density = np.exp(delta - 0.5).astype(np.float32)
    velocity = (250 * v).astype(np.float32)
    data = {"density": density, "velocity": velocity, "momentum": density * velocity}
    return xr.Dataset({k: label(k, d, grid, attrs) for k, d in data.items()}, attrs=attrs)


@pytest.fixture(scope="module")
def truth():
    return version(*gaussian(0))


@pytest.fixture(scope="module")
def network():
    (d0, v0), (d1, v1) = gaussian(0), gaussian(1)
    return version(0.8 * d0 + 0.3 * d1, 0.95 * v0 + 0.15 * v1)


@pytest.fixture(scope="module")
def linear():
    (d0, v0), (d1, v1) = gaussian(0), gaussian(2)
    return version(0.6 * d0 + 0.6 * d1, 0.9 * v0 + 0.5 * v1)


@pytest.fixture(scope="module")
def observed(truth):
    rate = 0.1 * truth.density.values / truth.density.values.mean()
    counts = np.random.default_rng(5).poisson(rate, (4, N, N, N)) / 0.4
    halos = truth.density.expand_dims(mass_bin=4).copy(data=counts.astype(np.float32))
    halos.attrs["space"] = "redshift"
    return xr.Dataset({"halo_density": halos}, attrs={**truth.attrs, "space": "redshift"})


@pytest.fixture(scope="module")
def results(truth, linear, network):
    return {"linear": evaluate(linear, truth), "network": evaluate(network, truth)}


def panels(figure):
    return [ax for ax in figure.axes if not ax.get_label() == "<colorbar>"]


def settings():
    # Without pyplot no backend is resolved, and asking for it would do so.
    return {k: v for k, v in dict.items(matplotlib.rcParams) if k != "backend"}


def test_slices(observed, truth, linear, network):
    figure = plot_slices(observed, truth, {"linear": linear, "network": network})
    assert len(panels(figure)) == 4
    assert len(figure.axes) == 6  # with two colour bars
    titles = [ax.get_title().split("\n")[0] for ax in panels(figure)]
    assert titles == ["halos, redshift space", "truth", "linear", "network"]
    limits = {ax.images[0].get_clim() for ax in panels(figure)[1:]}
    assert len(limits) == 1  # one scale for the truth and the predictions
    assert panels(figure)[0].get_ylabel() == r"$z$ [$h^{-1}$ Mpc], line of sight"
    assert all(ax.get_xlabel() == r"$x$ [$h^{-1}$ Mpc]" for ax in panels(figure))
    assert "90.6 < y < 103.1" in figure.get_suptitle()  # two cells of 6.25 Mpc/h
    assert all(ax.get_aspect() == 1 for ax in panels(figure))


def test_slices_show_the_slab_asked_for(observed, truth, network):
    figure = plot_slices(
        observed, truth, {"network": network}, field="density", axis="z", position=50, thickness=1
    )
    image = panels(figure)[1].images[0]
    np.testing.assert_allclose(image.get_array().T, truth.density.isel(z=8), rtol=1e-6)
    assert panels(figure)[0].get_xlabel().startswith("$x$")
    assert panels(figure)[0].get_ylabel() == r"$y$ [$h^{-1}$ Mpc]"
    halos = panels(figure)[0].images[0].get_array().T
    np.testing.assert_allclose(halos, observed.halo_density.sum("mass_bin").isel(z=8), rtol=1e-6)


@pytest.mark.parametrize(("los", "axis", "up"), [("x", "z", "x"), ("y", "z", "y"), ("z", "y", "z")])
def test_line_of_sight_runs_upwards(observed, truth, network, los, axis, up):
    seen = observed.assign_attrs(los=los)
    figure = plot_slices(seen, truth, {"network": network}, arrows=False)
    assert f"< {axis} <" in figure.get_suptitle()
    assert figure.axes[0].get_ylabel().startswith(f"${up}$")
    assert figure.axes[0].get_ylabel().endswith("line of sight")


def test_slices_of_rolled_lazy_and_cut_fields(observed, truth, network):
    whole = plot_slices(observed, truth, {"network": network}, position=100)
    shift = {"x": 3, "y": 9, "z": 5}
    rolled = [ds.roll(shift, roll_coords=True).chunk() for ds in (observed, truth, network)]
    again = plot_slices(rolled[0], rolled[1], {"network": rolled[2]}, position=100)
    for a, b in zip(panels(whole), panels(again), strict=True):
        np.testing.assert_allclose(a.images[0].get_array(), b.images[0].get_array())
    part = [ds.isel(x=slice(4, 20)) for ds in (observed, truth, network)]
    assert len(panels(plot_slices(part[0], part[1], {"network": part[2]}))) == 3


@pytest.mark.parametrize("field", ["density", "velocity", "velocity_divergence", "momentum"])
def test_spectra(results, field):
    figure = plot_spectra(results, field)
    power, deviation, correlation = figure.axes
    assert [line.get_label() for line in power.lines] == ["truth", "linear", "network"]
    assert [text.get_text() for text in power.get_legend().get_texts()][0] == "truth"
    row = results["network"].sel(field=field)
    np.testing.assert_array_equal(power.lines[2].get_ydata(), row.power_predicted)
    np.testing.assert_array_equal(deviation.lines[1].get_ydata(), row.relative_deviation)
    np.testing.assert_array_equal(correlation.lines[1].get_ydata(), row.correlation)
    assert deviation.get_ylim() == (-0.5, 0.5)
    assert power.get_xscale() == power.get_yscale() == "log"
    assert "Mpc" in power.get_ylabel()
    assert "Mpc" in correlation.get_xlabel()
    assert len({(line.get_color(), line.get_linestyle()) for line in power.lines}) == 3


def test_joint(network, truth):
    figure = plot_joint(network, truth)
    assert len(panels(figure)) == 3
    for ax in panels(figure):
        assert ax.get_xlabel().startswith("true")
        assert ax.get_ylabel().startswith("predicted")
        assert "C_r" in ax.texts[0].get_text()
        assert ax.get_xlim() == ax.get_ylim()
    c_r = evaluate(network, truth).magnitude_correlation.sel(vector="velocity")
    assert f"{float(c_r):.3f}" in panels(figure)[1].texts[0].get_text()
    assert len(panels(plot_joint(network, truth, fields=["velocity"]))) == 1


def test_joint_leaves_out_cells_without_a_logarithm(network, truth):
    holed = network.copy(deep=True)
    holed.density[:2] = -0.1
    assert len(panels(plot_joint(holed, truth, fields=["density"]))) == 1


def test_figures_can_be_saved(tmp_path, observed, truth, network, results):
    for figure in (
        plot_slices(observed, truth, {"network": network}),
        plot_spectra(results),
        plot_joint(network, truth),
    ):
        for path in (tmp_path / "figure.png", tmp_path / "figure.pdf"):
            figure.savefig(path)
            assert path.stat().st_size > 5000


def test_no_setting_and_no_figure_is_left_behind(observed, truth, network, results):
    before = settings()
    plot_slices(observed, truth, {"network": network})
    plot_spectra(results)
    plot_joint(network, truth)
    assert settings() == before
    code = (
        "import sys, cosmofields.plotting, cosmofields.evaluation\n"
        "print({'matplotlib', 'numba'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_inputs_stay_as_they_were(observed, truth, network):
    kept = [ds.copy(deep=True) for ds in (observed, truth, network)]
    plot_slices(observed, truth, {"network": network})
    plot_joint(network, truth)
    for before, after in zip(kept, (observed, truth, network), strict=True):
        xr.testing.assert_identical(before, after)


def test_missing_matplotlib_names_the_extra(monkeypatch, results):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'cosmofields\[plot\]'"):
        plot_spectra(results)


def test_errors(observed, truth, network, results):
    with pytest.raises(DimensionError, match="field='speed'"):
        plot_slices(observed, truth, {}, field="speed")
    with pytest.raises(DimensionError, match="position=500 lies outside; `y` runs from 0"):
        plot_slices(observed, truth, {"network": network}, position=500)
    with pytest.raises(DimensionError, match="los='w'"):
        plot_slices(observed, truth, {"network": network}, axis="w")
    with pytest.raises(MissingVariableError, match="No `halo_density`"):
        plot_slices(truth, truth, {})
    with pytest.raises(GridMismatchError):
        plot_slices(observed, truth, {"network": network.isel(x=slice(4))})
    with pytest.raises(MissingVariableError, match="it has density, velocity"):
        plot_spectra(results, "vorticity")
    with pytest.raises(MissingVariableError, match="No result to plot"):
        plot_spectra({})
    with pytest.raises(GridMismatchError, match="another truth"):
        plot_spectra({**results, "other": evaluate(truth, network)})
    with pytest.raises(MissingVariableError, match="expected some of"):
        plot_joint(network, truth[[]])
