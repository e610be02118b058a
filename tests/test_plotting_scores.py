"""Figures of scores: that they show the numbers of the Datasets, and leave nothing behind."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy.ndimage import gaussian_filter

matplotlib = pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.collections import PolyCollection, QuadMesh  # noqa: E402
from matplotlib.contour import QuadContourSet  # noqa: E402

from cosmofields.conventions import (  # noqa: E402
    DimensionError,
    GridMismatchError,
    MissingExtraError,
    MissingVariableError,
)
from cosmofields.plotting import (  # noqa: E402
    plot_correlation,
    plot_correlation_2d,
    plot_density_relation,
    plot_histograms,
    plot_joint,
    plot_multipoles,
    plot_spectra,
)
from cosmofields.plotting.spectra import only_rounding  # noqa: E402
from cosmofields.plotting.style import Spacing  # noqa: E402

SCALARS = (
    "density",
    "velocity_magnitude",
    "velocity_divergence",
    "momentum_magnitude",
    "momentum_divergence",
)
VECTORS = ("velocity", "momentum")
FIELDS = (*SCALARS, *VECTORS, "velocity_curl", "momentum_curl")
CELLS = 20_000


# --- Datasets laid out as those that `evaluate`, `combine` and `clustering` return ---


def strings(names: Sequence[str]) -> np.ndarray:
    return np.array(list(names), dtype=object)


def units_of(field: str) -> str:
    if field == "density":
        return "1"
    return "km/s/(Mpc/h)" if field.endswith(("divergence", "curl")) else "km/s"


def value_edges(field: str) -> np.ndarray:
    if field == "density":
        return np.geomspace(1e-2, 1e3, 101)
    low = 0.0 if field.endswith("magnitude") else -1.0
    if field.startswith("momentum"):
        return 200 * np.sinh(np.linspace(6.0 * low, 6.0, 101))
    return np.linspace(800 * low, 800, 101)  # some cells lie outside


def values(rng: np.random.Generator, field: str, shared: np.ndarray) -> np.ndarray:
    """Values of a field in the cells, correlated through ``shared`` normal numbers."""
    normal = 0.9 * shared + 0.43 * rng.standard_normal(CELLS)
    if field == "density":
        return np.exp(0.9 * normal - 0.4)
    return 300 * np.exp(0.4 * normal) if field.endswith("magnitude") else 250 * normal


def bounds_of(edges: np.ndarray) -> np.ndarray:
    return np.stack([edges[:-1], edges[1:]], axis=-1)


def make_result(seed: int = 1, *, spread: bool = False) -> xr.Dataset:
    """A result of one prediction of the truth that all seeds share."""
    rng, common = np.random.default_rng(seed), np.random.default_rng(0)
    k, r = np.arange(1, 25) * 0.02, np.arange(2.5, 120, 5.0)
    angles = np.linspace(0, 2, 101)
    edges = {name: value_edges(name) for name in FIELDS}
    coords: dict[str, Any] = {
        "field": strings(FIELDS),
        "units": ("field", strings([units_of(name) for name in FIELDS])),
        "scalar": strings(SCALARS),
        "vector": strings(VECTORS),
        "k": k,
        "ell": [0, 2, 4],
        "r": r,
        "r_perp": r,
        "r_par": r,
        "angle": angles[:-1] + 0.01,
        "angle_bounds": (("angle", "bound"), bounds_of(angles)),
        "value_bounds": (
            ("field", "value_bin", "bound"),
            np.stack([bounds_of(edges[name]) for name in FIELDS]),
        ),
    }
    data: dict[str, tuple[Any, np.ndarray]] = {}

    def put(name: str, dims: Any, rows: Any) -> None:
        data[name] = (dims, np.array(rows, dtype=np.float64))

    shared = {name: common.standard_normal(CELLS) for name in FIELDS}
    truth = {name: values(common, name, shared[name]) for name in FIELDS}
    guess = {name: values(rng, name, shared[name]) for name in FIELDS}
    pairs = [(guess[name], truth[name]) for name in FIELDS]
    put("correlation_coefficient", "field", [np.corrcoef(p, t)[0, 1] for p, t in pairs])
    put("rms_error", "field", [np.sqrt(((p - t) ** 2).mean()) for p, t in pairs])
    for of, cells in (("predicted", guess), ("true", truth)):
        counts = [np.histogram(cells[name], edges[name])[0] for name in FIELDS]
        put(f"mean_{of}", "field", [cells[name].mean() for name in FIELDS])
        put(f"std_{of}", "field", [cells[name].std() for name in FIELDS])
        put(f"histogram_{of}", ("field", "value_bin"), counts)
        put(f"outside_{of}", "field", [CELLS - inside.sum() for inside in counts])
        relation = [
            np.histogram2d(cells[name], cells["density"], (edges[name], edges["density"]))[0]
            for name in SCALARS
        ]
        put(f"density_relation_{of}", ("scalar", "value_bin", "density_bin"), relation)
    joint = [np.histogram2d(guess[name], truth[name], (edges[name],) * 2)[0] for name in SCALARS]
    put("joint", ("scalar", "value_bin", "value_bin_true"), joint)
    turned = [np.minimum(rng.exponential(0.05, CELLS), 1.9) for _ in VECTORS]
    counts = [np.histogram(angle, angles)[0] for angle in turned]
    put("misalignment_histogram", ("vector", "angle"), counts)
    put("misalignment_mean", "vector", [angle.mean() for angle in turned])
    put("misalignment_std", "vector", [angle.std() for angle in turned])

    scale = np.array([1.0 if units_of(name) == "1" else 1e5 for name in FIELDS])[:, None]
    tilt = 1 + 0.1 * rng.standard_normal((len(FIELDS), k.size))
    power = scale * 2e4 / (1 + (k / 0.05) ** 2)
    poles = np.array([1, 0.05, 0.02])[:, None]
    xi, plane = scale * np.exp(-r / 15), np.exp(-np.hypot(r[:, None], r) / 15)
    put("power_true", ("field", "k"), power)
    put("power_predicted", ("field", "k"), power * tilt)
    put("relative_deviation", ("field", "k"), tilt - 1)
    put("correlation", ("field", "k"), 0.99 * np.exp(-((k / 0.4) ** 2)) * np.ones_like(scale))
    put("multipoles_true", ("field", "ell", "k"), power[:, None] * poles)
    put("multipoles_predicted", ("field", "ell", "k"), (power * tilt)[:, None] * poles)
    put("xi_true", ("field", "ell", "r"), xi[:, None] * poles)
    put("xi_predicted", ("field", "ell", "r"), 1.1 * xi[:, None] * poles)
    put("xi_2d_true", ("field", "r_perp", "r_par"), scale[..., None] * plane)
    put("xi_2d_predicted", ("field", "r_perp", "r_par"), 1.1 * scale[..., None] * plane)
    if spread:
        for name, (dims, mean) in list(data.items()):
            if dims[-1] in ("k", "r"):
                data[f"{name}_spread"] = (dims, 0.05 * abs(mean) + 0.01)
    put("k_mean", "k", 1.001 * k)
    put("r_mean", "r", 1.001 * r)
    return xr.Dataset(data, coords=coords)


SQUASH = {"redshift space": 1.6, "moved back": 1.05, "real space": 1.0}


@pytest.fixture(scope="module")
def samples(network: xr.Dataset) -> xr.Dataset:
    """Samples as `clustering` returns them, whose separations are squashed along the sight."""
    density = network.sel(field="density")
    factors = list(SQUASH.values())
    r = network["r"].values
    plane = [np.exp(-np.hypot(r[:, None] / s, r * s) / 15) for s in factors]
    power = [2 * s * density["multipoles_true"].values for s in factors]
    xi = [2 * s * density["xi_true"].values for s in factors]
    return xr.Dataset(
        {
            "xi": (("sample", "ell", "r"), np.stack(xi), {"units": "1"}),
            "xi_2d": (("sample", "r_perp", "r_par"), np.stack(plane), {"units": "1"}),
            "power": (("sample", "ell", "k"), np.stack(power), {"units": "(Mpc/h)^3"}),
            "shot_noise": ("sample", [333.0, 333.0, 334.0]),
            "k_mean": network["k_mean"],
            "r_mean": network["r_mean"],
        },
        coords={"sample": strings(list(SQUASH)), "ell": [0, 2, 4], "r_perp": r, "r_par": r},
    )


@pytest.fixture(scope="module")
def network() -> xr.Dataset:
    return make_result(1)


@pytest.fixture(scope="module")
def linear() -> xr.Dataset:
    return make_result(2)


@pytest.fixture(scope="module")
def combined() -> xr.Dataset:
    return make_result(1, spread=True)


@pytest.fixture(scope="module")
def halos(network: xr.Dataset) -> xr.Dataset:
    """A spectrum as `power_spectrum` returns it."""
    power = 3 * network["power_true"].sel(field="density", drop=True)
    return xr.Dataset(
        {
            "power": power.assign_attrs(units="(Mpc/h)^3"),
            "k_mean": network["k_mean"],
            "shot_noise": ((), 333.0, {"units": "(Mpc/h)^3"}),
        }
    )


def panels(figure: Any) -> list[Any]:
    return [ax for ax in figure.axes if ax.axison and ax.get_label() != "<colorbar>"]


def lines(ax: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in ax.lines}


def fills(ax: Any) -> list[PolyCollection]:
    return [part for part in ax.collections if isinstance(part, PolyCollection)]


def contours(ax: Any) -> list[QuadContourSet]:
    return [part for part in ax.collections if isinstance(part, QuadContourSet)]


def legend(owner: Any) -> list[str]:
    found = owner.legends[0] if hasattr(owner, "legends") else owner.get_legend()
    return [text.get_text() for text in found.get_texts()]


# --- histograms ---


def test_histograms(network: xr.Dataset, linear: xr.Dataset) -> None:
    figure = plot_histograms({"network": network, "linear": linear})
    shown = panels(figure)
    assert [ax.get_xlabel() for ax in shown] == [
        r"$1+\delta$",
        r"$|\mathbf{v}|$ [km/s]",
        r"$\nabla\cdot\mathbf{v}$ [km/s/($h^{-1}$ Mpc)]",
        r"$1-\cos\varphi$ of $\mathbf{v}$",
        r"$|\mathbf{m}|$ [km/s]",
        r"$\nabla\cdot\mathbf{m}$ [km/s/($h^{-1}$ Mpc)]",
        r"$1-\cos\varphi$ of $\mathbf{m}$",
    ]
    speeds = shown[1].patches
    row = network.sel(field="velocity_magnitude")
    for patch, name in zip(speeds, ("true", "predicted"), strict=False):
        steps = patch.get_data()
        counts = row[f"histogram_{name}"]
        share = 100 * counts / (counts.sum() + row[f"outside_{name}"])
        np.testing.assert_allclose(steps.values, share, rtol=1e-12)
        np.testing.assert_array_equal(steps.edges, value_edges("velocity_magnitude"))
    assert len({patch.get_edgecolor() for patch in speeds}) == 3
    assert len({patch.get_linestyle() for patch in speeds[1:]}) == 2
    mean, std = float(row["mean_true"]), float(row["std_true"])
    assert legend(shown[1])[0] == rf"${mean:.0f}\pm{std:.0f}$"
    angle = shown[3].patches[1].get_data()
    counts = linear["misalignment_histogram"].sel(vector="velocity")
    np.testing.assert_allclose(angle.values, 100 * counts / counts.sum())
    last = figure.axes[-1]
    assert not last.axison
    assert legend(last) == ["truth", "network", "linear"]


def test_histograms_of_some_fields(network: xr.Dataset) -> None:
    figure = plot_histograms(network, ["velocity", "velocity_curl"])
    assert [ax.get_xlabel()[:12] for ax in panels(figure)] == [r"$1-\cos\varp", r"$(\nabla\tim"]
    assert legend(figure) == ["truth", "prediction"]


def test_directions_of_the_momentum_are_shown_where_they_differ(network: xr.Dataset) -> None:
    alike = network.copy()
    for name in ("misalignment_histogram", "misalignment_mean", "misalignment_std"):
        alike[name] = xr.ones_like(network[name]) * network[name].sel(vector="velocity", drop=True)
    axes = [panels(plot_histograms(results)) for results in (network, alike)]
    assert [sum("varphi" in ax.get_xlabel() for ax in shown) for shown in axes] == [2, 1]


def test_axes_show_what_the_cells_hold(network: xr.Dataset) -> None:
    density, speed, _, _, momentum, *_ = panels(plot_histograms(network))
    assert density.get_xscale() == "log"
    assert speed.get_xscale() == "linear"
    assert momentum.get_xscale() == "asinh"
    for ax, name in ((density, "density"), (speed, "velocity_magnitude")):
        low, high = ax.get_xlim()
        edges, counts = value_edges(name), network["histogram_true"].sel(field=name).values
        inside = counts[(edges[:-1] >= low - 1e-9) & (edges[1:] <= high + 1e-9)].sum()
        assert 0.995 < inside / counts.sum() < 1
    assert speed.get_xlim()[0] == momentum.get_xlim()[0] == 0


# --- joint distributions ---


def test_joint(network: xr.Dataset) -> None:
    figure = plot_joint(network)
    assert len(panels(figure)) == 5
    for ax, name in zip(panels(figure), SCALARS, strict=True):
        assert ax.get_xlabel().startswith("true $")
        assert ax.get_ylabel().startswith("predicted $")
        assert ax.get_xlim() == ax.get_ylim()
        (mesh,) = [part for part in ax.collections if isinstance(part, QuadMesh)]
        assert mesh.get_rasterized()
        assert mesh.get_clim() == (1, float(network["joint"].max()))
        counts = network["joint"].sel(scalar=name).values
        # Rows of a mesh run along y, where the prediction is.
        np.testing.assert_array_equal(mesh.get_array().filled(0), counts)
        np.testing.assert_array_equal(mesh.get_coordinates()[0, :, 0], value_edges(name))
        row = network.sel(field=name)
        score, error = (text for text in ax.texts[0].get_text().split("\n"))
        assert score == f"$C_r = {float(row['correlation_coefficient']):.3f}$"
        assert f"{float(row['rms_error']):.3g}" in error
        (drawn,) = contours(ax)
        smooth = gaussian_filter(counts, 1.0)
        shares = [smooth[smooth >= level].sum() / smooth.sum() for level in drawn.levels]
        np.testing.assert_allclose(shares, [0.95, 0.68], atol=0.01)
    bar = [ax for ax in figure.axes if ax.get_label() == "<colorbar>"]
    assert [ax.get_ylabel() for ax in bar] == ["cells per bin"]


def test_joint_of_a_skewed_pair_is_not_transposed(network: xr.Dataset) -> None:
    """A prediction of half the speed lies below the line of equality."""
    halved = network.copy()
    counts = np.zeros((100, 100))
    counts[10:13, 20:26] = 100  # predicted in bins 10 to 12, true in 20 to 25
    halved["joint"] = network["joint"].copy()
    halved["joint"].loc[{"scalar": "velocity_magnitude"}] = counts
    (ax,) = panels(plot_joint(halved, ["velocity_magnitude"]))
    vertices = np.concatenate([path.vertices for path in contours(ax)[0].get_paths()])
    assert (vertices[:, 1] < vertices[:, 0]).all()


def test_joint_of_several_has_a_row_for_each(network: xr.Dataset, linear: xr.Dataset) -> None:
    figure = plot_joint({"network": network, "linear": linear}, ["density", "velocity_magnitude"])
    assert [ax.get_title() for ax in panels(figure)] == ["network"] * 2 + ["linear"] * 2
    assert len(panels(plot_joint(network, "density"))) == 1


def test_density_relation(network: xr.Dataset) -> None:
    figure = plot_density_relation(network)
    assert len(panels(figure)) == 4
    for ax, name in zip(panels(figure), SCALARS[1:], strict=True):
        assert ax.get_xlabel() == r"$1+\delta$"
        assert ax.get_xscale() == "log"
        filled, line = contours(ax)
        assert filled.filled
        assert not line.filled
        for drawn, of in ((filled, "predicted"), (line, "true")):
            smooth = gaussian_filter(network[f"density_relation_{of}"].sel(scalar=name).values, 1.0)
            shares = [smooth[smooth >= level].sum() / smooth.sum() for level in drawn.levels[:3]]
            np.testing.assert_allclose(shares, [0.997, 0.95, 0.68], atol=0.01)
            # The densest cells lie inside the innermost contour: field upwards, density across.
            at = np.unravel_index(smooth.argmax(), smooth.shape)
            inner = drawn.get_paths()[-1 if not drawn.filled else 2]
            edges = value_edges(name), value_edges("density")
            y, x = (Spacing.of(e).centres(e)[i] for e, i in zip(edges, at, strict=True))
            low, high = inner.vertices.min(0), inner.vertices.max(0)
            assert (low <= [x, y]).all()
            assert (high >= [x, y]).all()
    assert legend(figure)[-1] == "truth"


# --- spectra ---


@pytest.mark.parametrize("field", ["density", "velocity", "velocity_divergence", "momentum"])
def test_spectra(network: xr.Dataset, linear: xr.Dataset, field: str) -> None:
    figure = plot_spectra({"network": network, "linear": linear}, field)
    power, deviation, correlation = figure.axes
    assert legend(figure) == ["truth", "network", "linear"]
    row = linear.sel(field=field)
    np.testing.assert_array_equal(lines(power)["linear"].get_xdata(), row["k_mean"])
    np.testing.assert_array_equal(lines(power)["truth"].get_ydata(), row["power_true"])
    np.testing.assert_array_equal(lines(power)["linear"].get_ydata(), row["power_predicted"])
    for ax, name in ((deviation, "relative_deviation"), (correlation, "correlation")):
        np.testing.assert_array_equal(lines(ax)["linear"].get_ydata(), row[name])
    assert deviation.get_ylim() == (-0.5, 0.5)
    assert correlation.get_ylim()[1] > 1
    assert power.get_xscale() == power.get_yscale() == "log"
    units = {"1": "Mpc)$^3$]", "km/s": "(km/s)$^2$ ($h^{-1}$ Mpc)$^3$]"}
    assert power.get_ylabel().endswith(units.get(units_of(field), "(km/s)$^2$ $h^{-1}$ Mpc]"))
    assert correlation.get_xlabel() == r"$k$ [$h$ Mpc$^{-1}$]"
    looks = {(line.get_color(), line.get_linestyle()) for line in power.lines}
    assert len(looks) == 3


def test_bands_are_drawn_where_there_is_a_spread(network: xr.Dataset, combined: xr.Dataset) -> None:
    for figure in (plot_spectra(network), plot_multipoles(network), plot_correlation(network)):
        assert not any(fills(ax) for ax in figure.axes)
    row = combined.sel(field="velocity")
    names = ("power_predicted", "relative_deviation", "correlation")
    for ax, name in zip(plot_spectra(combined).axes, names, strict=True):
        assert len(fills(ax)) == 2
        for part, width in zip(fills(ax), (2, 1), strict=True):
            low, high = (row[name] + sign * width * row[f"{name}_spread"] for sign in (-1, 1))
            vertices = part.get_paths()[0].vertices
            assert vertices[:, 1].min() == pytest.approx(float(low.min()))
            assert vertices[:, 1].max() == pytest.approx(float(high.max()))
    for draw, name in ((plot_multipoles, "multipoles"), (plot_correlation, "xi")):
        for ax, ell in zip(draw(combined).axes, (0, 2, 4), strict=True):
            row = combined.sel(field="density", ell=ell)
            factor = row["k_mean"] if name == "multipoles" else row["r_mean"] ** 2
            high = factor * (row[f"{name}_predicted"] + 2 * row[f"{name}_predicted_spread"])
            assert fills(ax)[0].get_paths()[0].vertices[:, 1].max() == pytest.approx(
                float(high.max())
            )
            assert len(fills(ax)) == 2


def test_a_band_wider_than_the_power_stays_on_the_axis(combined: xr.Dataset) -> None:
    wide = combined.assign(power_predicted_spread=combined["power_predicted"])
    power = plot_spectra(wide).axes[0]
    assert all((part.get_paths()[0].vertices[:, 1] > 0).all() for part in fills(power))


def test_rounding_has_no_curve(network: xr.Dataset, linear: xr.Dataset) -> None:
    curl = linear["field"] == "velocity_curl"
    gradient = linear.copy()
    for size, there in ((1e-11, False), (1e-5, True), (np.nan, False), (0.0, False)):
        gradient["power_predicted"] = linear["power_predicted"].where(
            ~curl, size * linear["power_true"]
        )
        assert only_rounding(gradient.sel(field="velocity_curl")) is not there
        figure = plot_spectra(
            {"network": network, "linear": gradient}, ["velocity_curl", "momentum_curl"]
        )
        rows = [figure.axes[i : i + 2] for i in (0, 2, 4)]
        assert [["linear" in lines(ax) for ax in row] for row in rows] == [[there, True]] * 3
        assert legend(figure) == ["truth", "network", "linear"]
    alone = plot_spectra(gradient, "velocity_curl")
    assert list(lines(alone.axes[0])) == ["truth"]


def test_spectra_in_columns(network: xr.Dataset, linear: xr.Dataset, halos: xr.Dataset) -> None:
    groups = {"by mass": {"network": network}, "by number": {"network": network, "linear": linear}}
    fields = ["density", "velocity"]
    figure = plot_spectra(groups, fields, others={"halos": halos})
    top = figure.axes[:4]
    assert [ax.get_title() for ax in top] == ["by mass"] * 2 + ["by number"] * 2
    assert [len(ax.lines) for ax in figure.axes[8:]] == [2, 2, 3, 3]  # and the line r = 1
    colors = {
        label: {ax_lines[label].get_color() for ax_lines in map(lines, top) if label in ax_lines}
        for label in ("network", "linear", "halos")
    }
    assert [len(found) for found in colors.values()] == [1, 1, 1]  # of a label, in all columns
    assert ["halos" in lines(ax) for ax in top] == [True, False, True, False]
    np.testing.assert_array_equal(lines(top[0])["halos"].get_ydata(), halos["power"])
    assert lines(top[0])["shot noise"].get_ydata()[0] == 333.0
    reverse = plot_spectra(groups, fields[::-1], others={"halos": halos})
    words = {"truth", "network", "linear", "halos", "shot noise"}
    assert set(legend(figure)) == set(legend(reverse)) == words
    assert top[0].get_ylim()[1] > float(halos["power"].max())


def test_what_spectra_refuse(network: xr.Dataset, linear: xr.Dataset, halos: xr.Dataset) -> None:
    with pytest.raises(MissingVariableError, match="it has density, velocity"):
        plot_spectra(network, "vorticity")
    with pytest.raises(MissingVariableError, match="No result to plot"):
        plot_spectra({})
    with pytest.raises(MissingVariableError, match="No `power_true` in the result 'a'"):
        plot_spectra({"a": network.drop_vars("power_true")})
    other = network.assign(power_true=1.1 * network["power_true"])
    with pytest.raises(GridMismatchError, match="'other' was scored against another truth"):
        plot_spectra({"network": network, "other": other})
    with pytest.raises(GridMismatchError, match="other bins"):
        plot_spectra({"network": network, "other": network.isel(k=slice(5))})
    with pytest.raises(DimensionError, match=r"'halos' is in \(Mpc/h\)\^3, that of no field"):
        plot_spectra(network, "velocity", others={"halos": halos})
    with pytest.raises(MissingVariableError, match=r"No `power` \(k\) in 'halos'"):
        plot_spectra(network, others={"halos": network})
    with pytest.raises(MissingVariableError, match="a are Datasets and b are not"):
        plot_spectra({"a": network, "b": {"c": network}})


# --- multipoles and correlation functions ---


def test_multipoles(network: xr.Dataset, samples: xr.Dataset) -> None:
    observed = samples.sel(sample="redshift space")
    figure = plot_multipoles({"network": network}, others={"halos": observed})
    row = network.sel(field="density")
    for ax, ell in zip(figure.axes, (0, 2, 4), strict=True):
        drawn = lines(ax)
        assert ax.get_ylabel() == rf"$k\,P_{ell}(k)$"
        for label, values in (
            ("truth", row["multipoles_true"]),
            ("network", row["multipoles_predicted"]),
            ("halos", observed["power"]),
        ):
            expected = row["k_mean"] * values.sel(ell=ell)
            np.testing.assert_allclose(drawn[label].get_ydata(), expected)
        assert drawn["truth"].get_color() == "black"
        assert ("_noise" in drawn) == (ell == 0)
    assert figure.get_supylabel() == r"[($h^{-1}$ Mpc)$^2$]"
    noise = lines(figure.axes[0])["_noise"]
    np.testing.assert_allclose(noise.get_ydata(), 333.0 * row["k_mean"])
    assert legend(figure) == ["truth", "network", "halos", "shot noise"]
    assert len(plot_multipoles(network, ells=[2]).axes) == 1


def test_units_of_multipoles_of_a_vector(network: xr.Dataset) -> None:
    for draw in (plot_multipoles, plot_correlation):
        units = r"[(km/s)$^2$ ($h^{-1}$ Mpc)$^2$]"
        assert draw(network, "velocity").get_supylabel() == units
        assert draw(network, "velocity_divergence").get_supylabel() == "[(km/s)$^2$]"


def test_unlike_curves_get_an_axis_that_shows_both(network: xr.Dataset) -> None:
    bare = network.sel(field="density")[["multipoles_true", "k_mean"]].drop_vars("field")
    bare = bare.rename(multipoles_true="power")
    like = plot_multipoles(network, others={"halos": 2 * bare.assign(k_mean=bare["k_mean"] / 2)})
    assert {ax.get_yscale() for ax in like.axes} == {"linear"}
    loud = bare.assign(power=100 * bare["power"])
    unlike = plot_multipoles(network, others={"halos": loud})
    for ax in unlike.axes:
        assert ax.get_yscale() == "asinh"
        low, high = ax.get_ylim()
        for line in ax.lines:
            assert low <= np.min(line.get_ydata())
            assert high >= np.max(line.get_ydata())


def test_samples_of_a_clustering(samples: xr.Dataset) -> None:
    for draw, name, factor in (
        (plot_multipoles, "power", samples["k_mean"]),
        (plot_correlation, "xi", samples["r_mean"] ** 2),
    ):
        figure = draw(samples)
        for ax, ell in zip(figure.axes, (0, 2, 4), strict=True):
            for label in SQUASH:
                expected = factor * samples[name].sel(sample=label, ell=ell)
                np.testing.assert_allclose(lines(ax)[label].get_ydata(), expected)
            black = [label for label, line in lines(ax).items() if line.get_color() == "black"]
            assert set(black) - {"_noise"} == {"real space"}
        ax = draw(samples, truth="moved back").axes[0]
        assert lines(ax)["moved back"].get_color() == "black"


def test_correlation_2d(network: xr.Dataset, samples: xr.Dataset) -> None:
    levels = (0.02, 0.06, 0.12)
    figure = plot_correlation_2d(samples, levels=levels[::-1])
    (ax,) = figure.axes
    assert ax.get_xlabel() == r"$r_\perp$ [$h^{-1}$ Mpc]"
    assert ax.get_aspect() == 1
    assert sorted(legend(figure)) == sorted(SQUASH)
    filled, *drawn = contours(ax)
    assert filled.filled
    # The true sample first, filled and with an edge; then the others.
    for part, squash in zip(drawn, (1.0, 1.6, 1.05), strict=True):
        np.testing.assert_array_equal(part.levels, levels)
        for path, level in zip(part.get_paths(), levels, strict=True):
            across, along = path.vertices.T
            radius = np.hypot(across / squash, along * squash)
            # xi = exp(-r / 15), between bins 5 Mpc/h wide.
            np.testing.assert_allclose(radius, -15 * np.log(level), atol=0.8)
            for signs in ((-1, 1), (1, -1)):
                mirrored = np.round(path.vertices * signs, 6) + 0.0
                assert set(map(tuple, mirrored)) == set(
                    map(tuple, np.round(path.vertices, 6) + 0.0)
                )
    reach = 1.25 * max(abs(drawn[1].get_paths()[0].vertices[:, 0]))
    assert 0.9 * reach < ax.get_xlim()[1] < 1.1 * reach

    figure = plot_correlation_2d({"network": network}, others=samples.isel(sample=[0]))
    assert legend(figure) == ["truth", "network", "redshift space"]


def test_correlation_2d_without_a_contour(samples: xr.Dataset) -> None:
    faint = samples.assign(xi_2d=1e-3 * samples["xi_2d"])
    with pytest.raises(DimensionError, match="levels="):
        plot_correlation_2d(faint)


def test_inner_levels_are_darker(samples: xr.Dataset) -> None:
    (ax,) = plot_correlation_2d(samples, levels=[0.02, 0.04, 0.08, 0.16, 0.32]).axes
    greys = contours(ax)[0].get_facecolor()[:, 0]
    assert len(greys) == 5
    assert (np.diff(greys) < 0).all()


def test_a_curve_below_the_levels_has_no_contour(samples: xr.Dataset) -> None:
    """Nor does matplotlib warn of it, and its name stays in the key."""
    faint = samples.copy(deep=True)
    faint["xi_2d"][0] *= 1e-3
    figure = plot_correlation_2d(faint)
    assert len(contours(figure.axes[0])) == 3  # two of the truth, one of what was moved back
    assert sorted(legend(figure)) == sorted(SQUASH)


def test_what_poles_refuse(network: xr.Dataset, samples: xr.Dataset, halos: xr.Dataset) -> None:
    with pytest.raises(MissingVariableError, match="No `xi` in 'halos'"):
        plot_correlation(network, others={"halos": halos})
    with pytest.raises(MissingVariableError, match="No `xi_2d_predicted, xi_2d_true`"):
        plot_correlation_2d(network.drop_vars(["xi_2d_predicted", "xi_2d_true"]))
    with pytest.raises(MissingVariableError, match="No result to plot"):
        plot_correlation_2d({})
    with pytest.raises(DimensionError, match="has the dims"):
        plot_multipoles(network, others={"halos": halos})
    with pytest.raises(DimensionError, match="fields in km/s, 1"):
        plot_multipoles(network, "velocity", others=samples)
    with pytest.raises(DimensionError, match="each under its own label"):
        plot_multipoles(samples, others=samples)
    with pytest.raises(DimensionError, match="has no l = 1"):
        plot_multipoles(samples, ells=[0, 1])
    with pytest.raises(DimensionError, match="truth='mock'; expected one of redshift space"):
        plot_correlation_2d(samples, truth="mock")
    other = network.assign(xi_true=2 * network["xi_true"])
    with pytest.raises(GridMismatchError, match="another truth"):
        plot_correlation({"network": network, "other": other})


# --- all of them ---

DRAW: dict[str, Callable[..., Any]] = {
    "histograms": lambda results, samples: plot_histograms(results),
    "joint": lambda results, samples: plot_joint(results),
    "one_histogram": lambda results, samples: plot_histograms(results, ["density"]),
    "histograms_in_a_row": lambda results, samples: plot_histograms(
        results, ["velocity_magnitude", "velocity_divergence", "velocity"]
    ),
    "density_relation": lambda results, samples: plot_density_relation(results),
    "spectra": lambda results, samples: plot_spectra(results, ["density", "velocity"]),
    "spectra_of_curls": lambda results, samples: plot_spectra(
        results, ["velocity_curl", "momentum_curl"]
    ),
    "xi_of_velocity": lambda results, samples: plot_correlation(results, "velocity"),
    "multipoles_of_velocity": lambda results, samples: plot_multipoles(results, "velocity"),
    "multipoles": lambda results, samples: plot_multipoles(results, others=samples),
    "correlation": lambda results, samples: plot_correlation(results, others=samples),
    "correlation_2d": lambda results, samples: plot_correlation_2d(results, others=samples),
}


def settings() -> dict[str, Any]:
    # Without pyplot no backend is resolved, and asking for it would do so.
    return {k: v for k, v in dict.items(matplotlib.rcParams) if k != "backend"}


@pytest.fixture(scope="module", params=DRAW)
def drawn(request: pytest.FixtureRequest, combined: xr.Dataset, samples: xr.Dataset) -> Any:
    """Each figure once, drawn where there is no pyplot and under another style."""
    kept = combined.copy(deep=True), samples.copy(deep=True)
    large = {"font.size": 20, "axes.labelsize": 20, "xtick.labelsize": 20, "axes.linewidth": 5}
    with pytest.MonkeyPatch.context() as patch, matplotlib.rc_context(large):
        patch.setitem(sys.modules, "matplotlib.pyplot", None)
        before = settings()
        figure = DRAW[request.param]({"network": combined}, samples)
        assert settings() == before
    xr.testing.assert_identical(combined, kept[0])
    xr.testing.assert_identical(samples, kept[1])
    return figure


def test_figures_are_small_and_fit_a_page(drawn: Any, tmp_path: Any) -> None:
    assert drawn.get_figwidth() <= 7.2
    assert drawn.dpi == 200
    for path in (tmp_path / "figure.png", tmp_path / "figure.pdf"):
        drawn.savefig(path)
        assert 5_000 < path.stat().st_size < 1_000_000


def test_the_users_style_does_not_enter(drawn: Any) -> None:
    ax = drawn.axes[0]
    assert ax.xaxis.label.get_size() == 8
    assert {tick.get_size() for tick in ax.get_xticklabels()} <= {7}
    assert ax.spines["left"].get_linewidth() == 0.7


def test_words_keep_clear_of_each_other_and_of_the_edge(drawn: Any) -> None:
    renderer = FigureCanvasAgg(drawn).get_renderer()
    for ax in drawn.axes:
        for axis, side in ((ax.xaxis, "x"), (ax.yaxis, "y")):
            words = [tick for tick in axis.get_ticklabels() if tick.get_text() and ax.axison]
            boxes = [tick.get_window_extent(renderer) for tick in words if tick.get_visible()]
            ends = sorted((getattr(box, f"{side}0"), getattr(box, f"{side}1")) for box in boxes)
            assert all(end <= start for (_, end), (start, _) in zip(ends, ends[1:], strict=False))
        box = ax.get_tightbbox(renderer)
        if box is not None:
            assert min(box.x0, box.y0) > -1
            assert box.x1 < drawn.bbox.x1 + 1
            assert box.y1 < drawn.bbox.y1 + 1


def words_of(figure: Any) -> list[tuple[str, Any]]:
    """Text outside the panels of a figure, each with the box that it fills."""
    figure.draw_without_rendering()  # what was saved as PDF was laid out at its resolution
    renderer = FigureCanvasAgg(figure).get_renderer()
    found = list(figure.texts)
    for part in [figure, *figure.subfigs]:
        found += [part._supylabel] if part._supylabel is not None else []
    for owner in (figure, *(ax for ax in figure.axes if not ax.axison)):
        legends = owner.legends if owner is figure else [owner.get_legend()]
        found += [text for one in legends if one for text in one.get_texts()]
    for ax in figure.axes:
        if ax.axison:
            found += [ax.title, ax.xaxis.label, ax.yaxis.label]
            for axis in (ax.xaxis, ax.yaxis):
                low, high = sorted(axis.get_view_interval())
                ticks = axis.get_major_ticks()
                found += [t.label1 for t in ticks if low <= t.get_loc() <= high]
                found.append(axis.get_offset_text())
    shown = {id(text): text for text in found if text.get_text().strip() and text.get_visible()}
    return [(text.get_text(), text.get_window_extent(renderer)) for text in shown.values()]


def test_no_two_words_meet_and_none_is_cut(drawn: Any) -> None:
    words = words_of(drawn)
    assert len(words) > 8
    for i, (text, box) in enumerate(words):
        assert min(box.x0, box.y0) > -1, text
        assert box.x1 < drawn.bbox.x1 + 1, text
        assert box.y1 < drawn.bbox.y1 + 1, text
        for other, its in words[i + 1 :]:
            wide = min(box.x1, its.x1) - max(box.x0, its.x0)
            tall = min(box.y1, its.y1) - max(box.y0, its.y0)
            assert min(wide, tall) < 1, (text, other)  # pixels


@pytest.mark.parametrize("name", DRAW)
def test_missing_matplotlib_names_the_extra(
    name: str, combined: xr.Dataset, samples: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'cosmofields\[plot\]'"):
        DRAW[name](combined, samples)


@pytest.mark.parametrize("draw", [plot_histograms, plot_joint, plot_density_relation])
def test_what_figures_of_cells_refuse(
    draw: Callable[..., Any], network: xr.Dataset, samples: xr.Dataset
) -> None:
    with pytest.raises(MissingVariableError, match="No result to plot"):
        draw({})
    with pytest.raises(MissingVariableError, match="No 'speed' in the result 'network'"):
        draw({"network": network}, ["speed"])
    with pytest.raises(MissingVariableError, match="No scalar field that all results have"):
        draw({"network": network, "samples": samples})
    with pytest.raises(MissingVariableError, match="in the result 'prediction'"):
        draw(network[["correlation_coefficient"]], ["density"])


@pytest.mark.parametrize("name", DRAW)
def test_realizations_are_to_be_combined_first(
    name: str, network: xr.Dataset, samples: xr.Dataset
) -> None:
    several = xr.concat([network, network], "realization")
    with pytest.raises(DimensionError, match=r"2 realizations; .*boxes\.combine\(result\)"):
        DRAW[name](several, samples)


def test_density_alone(network: xr.Dataset) -> None:
    alone = network.sel(field=["density"], scalar=["density"]).drop_dims("vector")
    assert len(panels(plot_histograms(alone))) == len(panels(plot_joint(alone))) == 1
    with pytest.raises(MissingVariableError, match="No scalar field beside the density"):
        plot_density_relation(alone)


def test_histograms_refuse_other_truths_and_bins(network: xr.Dataset) -> None:
    other = network.assign(histogram_true=network["histogram_true"] + 50)
    with pytest.raises(GridMismatchError, match="another truth"):
        plot_histograms({"network": network, "other": other}, ["density"])
    other = network.assign_coords(value_bounds=2 * network["value_bounds"])
    with pytest.raises(GridMismatchError, match="other bins"):
        plot_histograms({"network": network, "other": other}, ["density"])


def test_no_cell_in_the_bins(network: xr.Dataset) -> None:
    empty = network.assign(joint=0 * network["joint"])
    with pytest.raises(MissingVariableError, match=r"evaluate\(\.\.\., limits=\.\.\.\)"):
        plot_joint(empty, ["density"])


# --- bins and their axes ---


@pytest.mark.parametrize(
    ("edges", "kind"),
    [
        (np.linspace(-600, 200, 101), "linear"),
        (np.linspace(0, 2000, 101), "linear"),
        (np.geomspace(1e-2, 1e3, 101), "log"),
        (200 * np.sinh(np.linspace(0, 6, 101)), "asinh"),
        (200 * np.sinh(np.linspace(-5, 6, 101)), "asinh"),
        (np.cumsum(np.random.default_rng(0).uniform(1, 2, 101)), "linear"),
    ],
)
def test_spacing_is_found(edges: np.ndarray, kind: str) -> None:
    spacing = Spacing.of(edges)
    assert spacing.kind == kind
    if kind == "asinh":
        assert spacing.turn == pytest.approx(200, rel=1e-6)
    centres = spacing.centres(edges)
    assert ((edges[:-1] < centres) & (centres < edges[1:])).all()
    if kind == "log":
        np.testing.assert_allclose(centres, np.sqrt(edges[:-1] * edges[1:]))


@pytest.mark.parametrize(
    ("spacing", "limits", "expected"),
    [
        (Spacing("log"), (0.05, 40), [0.1, 1, 10]),
        (Spacing("asinh", 200.0), (0, 2e4), [0, 300, 1000, 3000, 1e4]),
        (Spacing("asinh", 200.0), (-2e3, 2e3), [-1000, 0, 1000]),
    ],
)
def test_ticks_are_round_and_apart(
    spacing: Spacing, limits: tuple[float, float], expected: list[float]
) -> None:
    assert spacing.ticks(*limits) == pytest.approx(expected)
