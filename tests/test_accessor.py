"""`.recon`: the same answers as the functions, and a repr that says what can be done next."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
import xarray as xr

import cosmofields as cf
from cosmofields import catalog, derivatives, evaluation, inference, linear
from cosmofields.conventions import MissingAttributeError


def test_pipeline_reads_like_the_science(halos: xr.Dataset, observed: xr.Dataset) -> None:
    chain = halos.recon.select().recon.to_redshift_space(los="z").recon.paint(n_grid=16)
    xr.testing.assert_allclose(chain.drop_attrs(), observed.drop_attrs())


def test_methods_are_the_functions(observed: xr.Dataset) -> None:
    fields = observed.recon.linear_theory(bias=1.5)
    xr.testing.assert_allclose(fields, linear.linear_theory(observed, bias=1.5))
    xr.testing.assert_allclose(observed.recon.linear_velocity(bias=1.5), fields["velocity"])
    v = fields["velocity"]
    xr.testing.assert_allclose(v.recon.divergence(), derivatives.divergence(v))
    xr.testing.assert_allclose(v.recon.curl(), derivatives.curl(v))
    xr.testing.assert_allclose(
        fields["density"].recon.gradient(), derivatives.gradient(fields["density"])
    )
    xr.testing.assert_allclose(v.recon.power_spectrum(), cf.power_spectrum(v))
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
    assert ".evaluate(true, edges=None)" in repr(fields.recon)
    assert ".divergence()" in repr(fields["velocity"].recon)
    assert ".gradient()" in repr(fields["density"].recon)


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


def test_options_are_passed_on(observed: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option of a function is one of the method, under its name and with its default."""
    modules = {"select": catalog, "evaluate": evaluation}
    modules |= dict.fromkeys(("predict", "predict_density", "predict_velocity"), inference)
    for name, module in modules.items():
        wanted = list(inspect.signature(getattr(module, name)).parameters.values())[1:]
        method = getattr(observed.recon, name)
        mine = inspect.signature(method).parameters
        assert list(mine) == [parameter.name for parameter in wanted]
        assert [p.kind for p in mine.values()] == [p.kind for p in wanted]
        if module is inference:
            assert [p.default for p in mine.values()] == [p.default for p in wanted]
        monkeypatch.setattr(module, name, lambda obj, *args, **options: (obj, *args, options))
        given = {p.name: object() for p in wanted}
        obj, *args, options = method(**given)
        assert obj is observed
        assert args == [given.pop(wanted[0].name)]
        assert options == given


def test_repr_names_what_is_missing(halos: xr.Dataset, observed: xr.Dataset) -> None:
    bare = observed.copy()
    del bare.attrs["redshift"]
    assert "still needs: redshift" in repr(bare.recon)
    real = halos.recon.select().recon.paint(16)
    assert "still needs" in repr(real.recon)
    assert "no field that is known here" in repr(xr.Dataset().recon)
    assert "nothing" in repr(xr.DataArray(np.zeros(3)).recon)
