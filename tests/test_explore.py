"""A slab of one field, and the box sliced in Jupyter: what is drawn, what is computed for it."""

from __future__ import annotations

import sys
from base64 import b64decode

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import cosmofields as cf
from cosmofields.conventions import DimensionError, MissingExtraError, MissingVariableError

pytest.importorskip("matplotlib")
pytest.importorskip("ipywidgets")

from cosmofields.plotting import plot_slab  # noqa: E402


@pytest.fixture(scope="module")
def fields(observed: xr.Dataset) -> xr.Dataset:
    """16^3 cells of 6.25 Mpc/h, z the line of sight."""
    return observed.recon.linear_theory(bias=1.5)


@pytest.fixture
def lazy(fields):
    """The fields in chunks of 8 cells and one component, and the chunks that were computed."""
    computed = []

    def seen(block, name, block_info=None):
        computed.append((name, *block_info[0]["chunk-location"]))
        return block

    chunks = {"x": 8, "y": 8, "z": 8, "component": 1}
    made = fields.chunk({dim: size for dim, size in chunks.items() if dim in fields.dims})
    for name in made.data_vars:
        data = made[name].data
        watched = da.map_blocks(seen, data, name, dtype=data.dtype, meta=np.array((), data.dtype))
        made[name] = made[name].copy(data=watched)
    return made, computed


def image(figure):
    return next(ax.images[0] for ax in figure.axes if ax.images)


def panel(figure):
    return next(ax for ax in figure.axes if ax.images)


# --- plot_slab ---


def test_a_slab_is_the_mean_over_its_thickness(fields):
    figure = plot_slab(fields["density"], axis="x", position=50, thickness=12.5)
    expected = fields["density"].sel(x=[43.75, 50.0]).mean("x")
    np.testing.assert_allclose(image(figure).get_array(), expected.T, rtol=1e-5)
    assert panel(figure).get_title(loc="left").startswith("$40.6 < x < 53.1$")
    assert panel(figure).get_ylabel() == r"$z$ [$h^{-1}$ Mpc], line of sight"


@pytest.mark.parametrize("show", ["x", "y", "z"])
def test_a_component_has_both_signs_alike(fields, show):
    figure = plot_slab(fields["velocity"], show=show, position=50, thickness=1)
    expected = fields["velocity"].sel(component=show, y=50.0)
    np.testing.assert_allclose(image(figure).get_array(), expected.T, rtol=1e-5)
    low, high = image(figure).get_clim()
    assert low == -high
    assert figure.axes[-1].get_xlabel() == f"$v_{show}$ [km/s]"


def test_of_a_vector_the_magnitude_with_arrows(fields):
    figure = plot_slab(fields["velocity"], position=50, thickness=1)
    expected = cf.magnitude(fields["velocity"]).sel(y=50.0)
    np.testing.assert_allclose(image(figure).get_array(), expected.T, rtol=1e-5)
    assert len(panel(figure).collections) == 1
    assert not panel(plot_slab(fields["velocity"], arrows=False)).collections
    assert not panel(plot_slab(fields["velocity"].rename("velocity_error"))).collections
    assert figure.axes[-1].get_xlabel() == r"$|\mathbf{v}|$ [km/s]"


def test_halos_are_the_sum_of_their_bins_or_one(observed):
    halos = observed["halo_density"]
    whole = plot_slab(halos, position=50, thickness=1)
    np.testing.assert_allclose(
        image(whole).get_array(), halos.sum("mass_bin").sel(y=50.0).T, rtol=1e-5
    )
    second = str(halos["mass_bin"].values[1])
    part = plot_slab(halos, show=second, position=50, thickness=1)
    np.testing.assert_allclose(
        image(part).get_array(), halos.isel(mass_bin=1).sel(y=50.0).T, rtol=1e-5
    )


def test_classes_are_not_averaged(fields):
    web = cf.v_web(fields)["web"]
    figure = plot_slab(web, axis="z", position=50, thickness=50)
    np.testing.assert_array_equal(image(figure).get_array(), web.sel(z=50.0).T)
    labels = [text.get_text() for text in figure.axes[-1].get_xticklabels()]
    assert labels == ["void", "sheet", "filament", "knot"]
    assert image(figure).norm(3) != image(figure).norm(2)


def test_other_fields_say_what_they_are(fields):
    found = cf.v_web(fields)["eigenvalue"]
    figure = plot_slab(found, show="3")
    assert figure.axes[-1].get_xlabel() == "eigenvalue of the V-web, 3"
    divergence = fields["velocity"].recon.divergence()
    figure = plot_slab(divergence)
    assert figure.axes[-1].get_xlabel().startswith("divergence of peculiar velocity [km/s/(")
    low, high = image(figure).get_clim()
    assert low == -high


def test_a_slab_says_what_it_cannot_show(fields):
    with pytest.raises(DimensionError, match="show='w'; expected one of magnitude, x, y, z"):
        plot_slab(fields["velocity"], show="w")
    with pytest.raises(DimensionError, match="the field is a scalar"):
        plot_slab(fields["density"], show="x")
    with pytest.raises(DimensionError, match="at most one more"):
        plot_slab(fields["density"].isel(x=0))
    with pytest.raises(DimensionError, match="lies outside"):
        plot_slab(fields["density"], position=400)
    with pytest.raises(DimensionError, match="one of its variables"):
        plot_slab(fields)


# --- explore ---


def test_only_the_slab_that_is_shown_is_computed(lazy):
    fields, computed = lazy
    box = fields.recon.explore(thickness=6.25)  # across y, at its middle
    assert sorted(computed) == [("density", i, 1, k) for i in range(2) for k in range(2)]
    computed.clear()
    box.controls["position"].value = 0.0
    assert sorted(computed) == [("density", i, 0, k) for i in range(2) for k in range(2)]
    computed.clear()
    box.controls["axis"].value = "z"  # and to the middle
    assert sorted(computed) == [("density", i, j, 1) for i in range(2) for j in range(2)]
    computed.clear()
    box.controls["field"].value = "velocity"
    assert len(computed) == 3 * 4
    computed.clear()
    box.controls["show"].value = "x"
    assert sorted(computed) == [("velocity", 0, i, j, 1) for i in range(2) for j in range(2)]
    computed.clear()
    box.controls["thickness"].value = 12.5  # cells 7 and 8, on both sides of a chunk's face
    assert len(computed) == 8


def test_a_store_is_sliced_where_one_asks(fields, tmp_path):
    cf.write_store(fields, tmp_path / "fields.zarr")
    box = cf.open_store(tmp_path / "fields.zarr").recon.explore(thickness=1, position=12.5)
    shown = image(box.figure).get_array()
    np.testing.assert_allclose(shown, fields["density"].sel(y=12.5).T, rtol=1e-3)


def test_controls_offer_what_a_field_has(fields):
    box = fields.recon.explore()
    show = box.controls["show"]
    assert box.controls["field"].options == ("density", "velocity", "momentum")
    assert (show.options, show.layout.display) == ((), "none")
    box.controls["field"].value = "velocity"
    assert show.options == ("magnitude", "x", "y", "z")
    assert show.layout.display == ""
    show.value = "z"
    assert figure_label(box) == "$v_z$ [km/s]"
    box.controls["field"].value = "density"
    assert figure_label(box) == r"$1+\delta$"


def figure_label(box):
    return box.figure.axes[-1].get_xlabel()


def test_colours_stay_while_one_moves(fields):
    box = fields["density"].recon.explore(thickness=1, position=0)
    first = image(box.figure).get_clim()
    pictures = {box.widget.children[-1].value}
    for place in (25.0, 50.0):
        box.controls["position"].value = place
        assert image(box.figure).get_clim() == first
        pictures.add(box.widget.children[-1].value)
    assert len(pictures) == 3
    box.controls["thickness"].value = 25.0
    assert image(box.figure).get_clim() != first


def test_arrows_can_be_left_out(fields):
    box = fields["velocity"].recon.explore()
    assert panel(box.figure).collections
    box.controls["arrows"].value = False
    assert not panel(box.figure).collections


def test_without_a_kernel_it_is_a_picture(fields):
    box = fields.recon.explore()
    bundle = box._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert "slabs of density, velocity, momentum" in repr(box)


def test_a_missing_extra_is_named(fields, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'cosmofields\[explore\]'"):
        fields.recon.explore()


def test_nothing_to_slice(halos, fields):
    with pytest.raises(MissingVariableError, match="Nothing to slice among position"):
        halos.recon.explore()
    with pytest.raises(DimensionError, match="at most one more"):
        fields["density"].isel(x=0).recon.explore()
