"""Figures of fields and of training; every figure from what the package itself measures."""

import subprocess
import sys

import dask
import numpy as np
import pytest
import scipy.fft
import xarray as xr

matplotlib = pytest.importorskip("matplotlib")

from cosmofields import boxes, plotting  # noqa: E402
from cosmofields.conventions import (  # noqa: E402
    DimensionError,
    GridMismatchError,
    MissingExtraError,
    MissingVariableError,
    StoreError,
    label,
    make_grid,
)
from cosmofields.derivatives import divergence  # noqa: E402
from cosmofields.evaluation import evaluate  # noqa: E402
from cosmofields.plotting import open_curves, plot_slices, plot_training  # noqa: E402

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
    return [ax for ax in figure.axes if ax.images]


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


@pytest.mark.parametrize("field", ["velocity", "momentum"])
def test_slices_of_a_divergence(observed, truth, network, field):
    name = f"{field}_divergence"
    figure = plot_slices(
        observed, truth, {"network": network}, field=name, axis="x", position=50, thickness=1
    )
    for ax, ds in zip(panels(figure)[1:], (truth, network), strict=True):
        # Of the whole box: cut first, the derivative along x would be lost.
        expected = divergence(ds[field]).isel(x=8)
        np.testing.assert_allclose(ax.images[0].get_array(), expected.T, rtol=1e-4, atol=1e-3)
        low, high = ax.images[0].get_clim()
        assert low == -high
    assert r"[km/s/($h^{-1}$ Mpc)]" in figure.axes[-1].get_xlabel()


def test_slices_take_a_divergence_that_is_there(observed, truth, network):
    """As boxes cut out of a larger one hold it, of which no derivative could be made."""
    parts = []
    for ds in (truth, network):
        made = ds.assign(velocity_divergence=divergence(ds.velocity)).drop_vars("velocity")
        parts.append(made.isel(x=slice(4, 20)))
    figure = plot_slices(
        observed.isel(x=slice(4, 20)),
        parts[0],
        {"network": parts[1]},
        field="velocity_divergence",
        axis="z",
        position=50,
        thickness=1,
    )
    expected = parts[0].velocity_divergence.isel(z=8)
    np.testing.assert_array_equal(panels(figure)[1].images[0].get_array().T, expected)


@pytest.mark.parametrize("field", ["velocity", "density", "velocity_divergence"])
def test_slices_with_histograms(observed, truth, network, results, field):
    figure = plot_slices(observed, truth, {"network": network}, field=field, results=results)
    labels = [ax.get_xlabel() for ax in figure.axes if "cells" in ax.get_ylabel()]
    expected = {
        "velocity": [r"$|\mathbf{v}|$ [km/s]", r"$1-\cos\varphi$ of $\mathbf{v}$"],
        "density": [r"$1+\delta$"],
        "velocity_divergence": [r"$\nabla\cdot\mathbf{v}$ [km/s/($h^{-1}$ Mpc)]"],
    }
    assert labels == expected[field]
    assert len(panels(figure)) == 3


def test_title_gives_mean_and_scatter_over_the_slab(observed, truth):
    figure = plot_slices(observed, truth, {"again": truth}, field="density", axis="z", position=50)
    cells = truth.density.isel(z=slice(7, 9)).values.astype(float)
    mean, std = cells.mean(), cells.std()
    assert panels(figure)[1].get_title() == rf"truth{chr(10)}${mean:.3f}\pm{std:.3f}$"


def test_slices_read_the_slab_alone(observed, truth, network):
    """Of a box in many chunks those of the slab are computed."""
    seen = []

    def note(block, block_info=None):
        seen.append(block_info[0]["chunk-location"][2:] if block_info else ())
        return block

    lazy = truth.chunk(y=4)
    lazy["velocity"] = lazy.velocity.copy(data=lazy.velocity.data.map_blocks(note, dtype="f4"))
    with dask.config.set(scheduler="synchronous"):
        seen.clear()
        plot_slices(observed, lazy, {"network": network}, position=50, thickness=6)
    assert len({location for location in seen if location}) == 1


# --- learning curves ---


def log(folder, version, text):
    file = folder / f"version_{version}" / "metrics.csv"
    file.parent.mkdir(parents=True)
    file.write_text("epoch,step,train_loss,val_loss\n" + text)
    return file


@pytest.fixture
def run(tmp_path):
    """What training logs: killed in its third epoch, and resumed from the second."""
    folder = tmp_path / "models" / "velocity-log"
    log(folder, 0, "0,99,,0.9\n0,99,0.8,\n1,199,,0.7\n1,199,0.6,\n2,299,,0.")
    log(folder, 10, "2,299,,0.55\n2,299,0.5,\n")  # sorts before version_2 as a name
    log(folder, 2, "1,199,,0.71\n1,199,0.61,\n2,299,,0.65\n2,299,0.64,\n")
    return folder


def test_open_curves_of_a_resumed_run(run):
    curves = open_curves(run)
    np.testing.assert_array_equal(curves.epoch, [0, 1, 2])
    np.testing.assert_array_equal(curves.train_loss, [0.8, 0.61, 0.5])
    np.testing.assert_array_equal(curves.val_loss, [0.9, 0.71, 0.55])
    np.testing.assert_array_equal(curves.step, [100, 200, 300])
    xr.testing.assert_identical(curves, open_curves(run.parent))
    first = open_curves(run / "version_0" / "metrics.csv")
    xr.testing.assert_identical(first, open_curves(run / "version_0"))
    np.testing.assert_array_equal(first.train_loss, [0.8, 0.6, np.nan])


def test_curves_survive_a_file(run, tmp_path):
    curves = open_curves(run)
    curves.to_netcdf(tmp_path / "curves.nc")
    curves.to_zarr(tmp_path / "curves.zarr", consolidated=False)
    with xr.open_dataset(tmp_path / "curves.nc") as again:
        xr.testing.assert_identical(again.load(), curves)
    again = xr.open_zarr(tmp_path / "curves.zarr", consolidated=False).load()
    xr.testing.assert_identical(again, curves)


def test_open_curves_errors(run, tmp_path):
    with pytest.raises(StoreError, match="holds none; expected the learning curve of one fit"):
        open_curves(tmp_path)
    with pytest.raises(StoreError, match="No such|holds none"):
        open_curves(tmp_path / "nowhere")
    log(run.parent / "density-log", 0, "")
    with pytest.raises(StoreError, match="those of density-log, velocity-log"):
        open_curves(run.parent)
    with pytest.raises(StoreError, match="no epoch with a loss"):
        open_curves(run.parent / "density-log")


def test_training(run):
    curves = open_curves(run)
    figure = plot_training({"density": curves, "velocity": 2 * curves})
    assert [ax.get_title() for ax in figure.axes] == ["density", "velocity"]
    train, validation, best = figure.axes[0].lines
    np.testing.assert_array_equal(train.get_ydata(), curves.train_loss)
    np.testing.assert_array_equal(validation.get_ydata(), curves.val_loss)
    assert (best.get_xdata(), best.get_ydata()) == ([2], [0.55])
    words = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert words == ["training", "validation", "least, epoch 2"]
    assert figure.axes[0].get_ylabel() == "loss"
    assert figure.axes[0].get_xlabel() == "epoch"
    looks = {(line.get_color(), line.get_linestyle()) for line in (train, validation)}
    assert len(looks) == 2
    assert len(plot_training(curves).axes) == 1


def test_training_errors(run):
    with pytest.raises(MissingVariableError, match="No `val_loss` in the curves 'density'"):
        plot_training({"density": open_curves(run).drop_vars("val_loss")})
    with pytest.raises(MissingVariableError, match="No curves"):
        plot_training({})


# --- what the package itself measures ---

DRAW = {
    "histograms": plotting.plot_histograms,
    "joint": plotting.plot_joint,
    "density_relation": plotting.plot_density_relation,
    "spectra": lambda r: plotting.plot_spectra(r, ["density", "velocity", "momentum_divergence"]),
    "multipoles": plotting.plot_multipoles,
    "correlation": plotting.plot_correlation,
    "correlation_2d": lambda r: plotting.plot_correlation_2d(r, levels=[0.05, 0.1]),
}


@pytest.mark.parametrize("name", DRAW)
def test_what_evaluate_returns_can_be_drawn(name, results):
    figure = DRAW[name](results)
    assert len(figure.axes) > 0


@pytest.fixture(scope="module")
def combined(truth, network):
    return boxes.combine(boxes.evaluate_sub_boxes(network, truth, 100.0, stride=50.0))


@pytest.mark.parametrize("name", [name for name in DRAW if "correlation" not in name])
def test_what_combine_returns_can_be_drawn(name, combined):
    figure = DRAW[name]({"network": combined})
    bands = any(part.get_alpha() == 0.25 for ax in figure.axes for part in ax.collections)
    assert bands == (name in ("spectra", "multipoles"))


def test_figures_of_fields_can_be_saved(tmp_path, observed, truth, network, results, run):
    for figure in (
        plot_slices(observed, truth, {"network": network}, results=results),
        plot_training(open_curves(run)),
    ):
        for path in (tmp_path / "figure.png", tmp_path / "figure.pdf"):
            figure.savefig(path)
            assert 5_000 < path.stat().st_size < 1_000_000


def test_no_setting_and_no_figure_is_left_behind(observed, truth, network, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    before = settings()
    plot_slices(observed, truth, {"network": network})
    plot_training(open_curves(run))
    assert settings() == before
    code = (
        "import sys, cosmofields.plotting, cosmofields.evaluation\n"
        "print({'matplotlib', 'numba', 'scipy.ndimage', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_inputs_stay_as_they_were(observed, truth, network):
    kept = [ds.copy(deep=True) for ds in (observed, truth, network)]
    plot_slices(observed, truth, {"network": network}, field="velocity_divergence")
    for before, after in zip(kept, (observed, truth, network), strict=True):
        xr.testing.assert_identical(before, after)


def test_missing_matplotlib_names_the_extra(monkeypatch, observed, truth, network, run):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    curves = open_curves(run)  # reads without it
    with pytest.raises(MissingExtraError, match=r"pip install 'cosmofields\[plot\]'"):
        plot_training(curves)
    with pytest.raises(MissingExtraError, match=r"pip install 'cosmofields\[plot\]'"):
        plot_slices(observed, truth, {"network": network})


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
    bare = network.drop_vars("velocity")
    with pytest.raises(MissingVariableError, match="`velocity_divergence` is made of it"):
        plot_slices(observed, truth, {"network": bare}, field="velocity_divergence")
    few = {"network": results["network"].drop_vars("misalignment_histogram")}
    with pytest.raises(MissingVariableError, match="in the result 'network'"):
        plot_slices(observed, truth, {"network": network}, results=few)
