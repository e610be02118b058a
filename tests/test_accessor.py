"""`.recon`: the same answers as the functions, and a repr that says what can be done next."""

from __future__ import annotations

import importlib
import inspect
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray as xr

import cosmofields as cf
from cosmofields import catalog
from cosmofields.accessor import DataArrayRecon, DatasetRecon
from cosmofields.conventions import MissingAttributeError


def test_pipeline_reads_like_the_science(halos: xr.Dataset, observed: xr.Dataset) -> None:
    chain = halos.recon.select().recon.to_redshift_space(los="z").recon.paint(n_grid=16)
    xr.testing.assert_allclose(chain.drop_attrs(), observed.drop_attrs())


def test_methods_are_the_functions(observed: xr.Dataset) -> None:
    fields = observed.recon.linear_theory(bias=1.5)
    xr.testing.assert_identical(fields["velocity"], observed.recon.linear_velocity(bias=1.5))
    v = fields["velocity"]
    xr.testing.assert_identical(v.recon.divergence(), cf.divergence(v))
    xr.testing.assert_identical(v.recon.power_spectrum(), cf.power_spectrum(v))
    assert (v.recon.spectra(v)["relative_deviation"] == 0).all()
    assert float(fields.recon.evaluate(fields)["rms_error"].max()) == 0


def test_box_facts(observed: xr.Dataset) -> None:
    assert observed.recon.grid.shape == (16, 16, 16)
    assert observed.recon.grid.cell_size == (6.25, 6.25, 6.25)
    assert observed.recon.redshift == 0.59
    assert observed.recon.cosmology.Omega_m == 0.268
    with pytest.raises(MissingAttributeError, match="No `redshift`"):
        _ = observed.drop_attrs().recon.redshift


def test_repr_of_each_stage(halos: xr.Dataset, observed: xr.Dataset) -> None:
    assert ".select()" in repr(halos.recon)
    assert "100 Mpc/h" in repr(halos.recon)
    selected = halos.recon.select()
    assert ".select()" not in repr(selected.recon)
    assert ".to_redshift_space" in repr(selected.recon)
    assert ".predict()" in repr(observed.recon)
    assert "16 x 16 x 16 cells of 6.25 Mpc/h" in repr(observed.recon)
    fields = observed.recon.linear_theory(bias=1.5)
    assert ".linear_velocity()" in repr(observed.recon)
    assert ".evaluate(true)" in repr(fields.recon)
    assert ".divergence()" in repr(fields["velocity"].recon)
    assert ".gradient()" in repr(fields["density"].recon)
    assert ".misalignment(true)" in repr(fields["velocity"].recon)
    assert ".misalignment(true)" not in repr(fields["density"].recon)


def test_html_repr_is_the_text_as_a_table(observed: xr.Dataset) -> None:
    fields = observed.recon.linear_theory(bias=1.5)
    fields["velocity"].attrs["model"] = "<default>"
    for obj in (observed, fields, fields["velocity"]):
        page = obj.recon._repr_html_()
        root = ElementTree.fromstring(page)
        text = ["".join(row.itertext()) for row in root.iter("tr")]
        lines = repr(obj.recon).splitlines()[1:]
        assert [re.sub(r"\s+", "", row) for row in text] == [re.sub(r"\s+", "", li) for li in lines]
    assert "made by    <default>" in repr(fields.recon)
    assert "<code>.predict()</code>: density" in observed.recon._repr_html_()
    assert "<code>.predict_density(), .predict_velocity(), .predict_momentum()</code>" in (
        observed.recon._repr_html_()
    )


def test_repr_of_results_and_parts(halos: xr.Dataset, observed: xr.Dataset) -> None:
    assert ".to_real_space(velocity)" in repr(halos.recon.to_redshift_space().recon)
    assert ".to_real_space" not in repr(halos.recon)
    fields = observed.recon.linear_theory(bias=1.5)
    scores = repr(fields.recon.evaluate(fields).recon)
    assert "scores of density, velocity, velocity_magnitude" in scores
    assert "scores_table" in scores
    parts = fields.recon.evaluate_sub_boxes(fields, (100, 100, 50))
    assert "scores over 2 boxes" in repr(parts.recon)
    assert "cosmofields.combine(scores)" in repr(parts.recon)
    assert "scores_table" in repr(cf.combine(parts).recon)
    part = fields.recon.sub_boxes(50)[0]
    assert part.recon.grid.shape == (8, 8, 8)
    assert part.recon.grid.lengths == (50, 50, 50)
    assert "50 Mpc/h, not periodic" in repr(part.recon)
    assert "taper=0.35" in repr(part["density"].recon)
    assert ".gradient()" not in repr(part["density"].recon)


def test_repr_of_mass_bins(halos: xr.Dataset, observed: xr.Dataset) -> None:
    bins = "number_density 0.0001, 0.001, 0.002, 0.003 (h/Mpc)^3"
    selected = repr(halos.recon.select().recon)
    assert "mass_bin (halo)" in selected
    assert bins in selected
    assert "number_density" not in repr(halos.recon)
    assert "number_density" not in repr(observed.recon.linear_theory(bias=1.5).recon)
    one = halos.assign(mass_bin=halos["mass"]).assign_attrs(number_density=np.float64(1e-3))
    assert "number_density 0.001 (h/Mpc)^3" in repr(one.recon)
    field = observed["halo_density"]
    for text in (repr(observed.recon), repr(field.recon)):
        assert bins in text
        assert re.search("weighting +mass\n", text)
    assert ".power_spectrum()" not in repr(field.recon)
    assert ".gradient()" not in repr(field.recon)
    assert ".isel(mass_bin=0) or .sum('mass_bin') first" in repr(field.recon)
    assert ".gradient()" in repr(field.isel(mass_bin=0).recon)


def test_repr_offers_what_the_columns_allow(halos: xr.Dataset) -> None:
    particles = halos.drop_vars("mass")
    assert ".paint_matter(n_grid=128)" in repr(particles.recon)
    still = repr(particles.drop_vars("velocity").recon)
    assert ".paint(n_grid=128, weighting='number')" in still
    assert ".to_redshift_space" not in still
    # Halos without masses make a single bin.
    assert ".select([3e-3])" in still
    seen = particles.recon.select([1e-3]).recon.to_redshift_space("z")
    assert ".select(" not in repr(seen.recon)
    assert ".reconstruct('fields.zarr', model='no-mass')" in repr(seen.recon)
    matter = particles.rename(halo="particle")
    assert ".select(" not in repr(matter.recon)


METHODS = [
    (owner, name)
    for owner in (DatasetRecon, DataArrayRecon)
    for name, method in inspect.getmembers(owner, inspect.isfunction)
    if not name.startswith("_")
]


@pytest.mark.parametrize(
    ("owner", "name"), METHODS, ids=lambda value: getattr(value, "__name__", value)
)
def test_method_has_the_signature_of_its_function(owner: type, name: str) -> None:
    """Names, kinds, defaults and annotations, as they are written."""
    method, function = (inspect.signature(getattr(home, name)) for home in (owner, cf))
    _, *mine = method.parameters.values()
    of, *wanted = function.parameters.values()
    if name == "select":  # its function's default lies in a room that a start should not load
        assert (mine[0].default, wanted[0].default) == (None, catalog.NUMBER_DENSITY)
        del mine[0], wanted[0]
    kind = f"xr.{owner.__name__.removesuffix('Recon')}"
    assert mine == wanted
    assert kind in of.annotation.replace("Box", kind).split(" | ")
    assert method.return_annotation == function.return_annotation.replace("Box", kind)
    assert f":func:`cosmofields.{name}`" in getattr(owner, name).__doc__


@pytest.mark.parametrize(
    ("owner", "name"), METHODS, ids=lambda value: getattr(value, "__name__", value)
)
def test_method_calls_its_function(owner: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is given arrives, behind the object, and what comes back is handed on."""
    module = importlib.import_module(cf._EXPORTS[name])
    monkeypatch.setattr(module, name, lambda *args, **options: (args, options))
    parameters = list(inspect.signature(getattr(owner, name)).parameters.values())[1:]
    args = [object() for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    options = {p.name: object() for p in parameters if p.kind is p.KEYWORD_ONLY}
    obj = object()
    assert getattr(owner(obj), name)(*args, **options) == ((obj, *args), options)


def test_repr_names_what_is_missing(halos: xr.Dataset, observed: xr.Dataset) -> None:
    bare = observed.copy()
    del bare.attrs["redshift"]
    assert "still needs: redshift" in repr(bare.recon)
    real = halos.recon.select().recon.paint(16)
    assert "still needs" in repr(real.recon)
    assert "no field that is known here" in repr(xr.Dataset().recon)
    assert "nothing" in repr(xr.DataArray(np.zeros(3)).recon)


def test_an_attribute_that_is_missing_inside_is_said_as_such(
    observed: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not as one that `.recon` has not: a property's own error, and a method's function."""

    def fail(_: xr.Dataset) -> None:
        raise AttributeError("of something else")

    monkeypatch.setattr("cosmofields.cosmology.redshift_of", fail)
    with pytest.raises(AttributeError, match="^of something else$"):
        _ = observed.recon.redshift
    monkeypatch.delattr("cosmofields.linear.linear_theory")
    monkeypatch.delitem(vars(vars(DatasetRecon)["linear_theory"]), "call", raising=False)
    with pytest.raises(AttributeError, match="cosmofields.linear' has no attribute"):
        observed.recon.linear_theory()
