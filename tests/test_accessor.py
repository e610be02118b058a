"""`.recon`: the same answers as the functions, and a repr that says what can be done next."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import cosmofields as cf
from cosmofields import fourier, linear
from cosmofields.conventions import MissingAttributeError


def test_pipeline_reads_like_the_science(halos: xr.Dataset, observed: xr.Dataset) -> None:
    chain = halos.recon.select().recon.to_redshift_space(los="z").recon.paint(n_grid=16)
    xr.testing.assert_allclose(chain.drop_attrs(), observed.drop_attrs())


def test_methods_are_the_functions(observed: xr.Dataset) -> None:
    fields = observed.recon.linear_theory(bias=1.5)
    xr.testing.assert_allclose(fields, linear.linear_theory(observed, bias=1.5))
    xr.testing.assert_allclose(observed.recon.linear_velocity(bias=1.5), fields["velocity"])
    v = fields["velocity"]
    xr.testing.assert_allclose(v.recon.divergence(), fourier.divergence(v))
    xr.testing.assert_allclose(v.recon.curl(), fourier.curl(v))
    xr.testing.assert_allclose(
        fields["density"].recon.gradient(), fourier.gradient(fields["density"])
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
    assert ".evaluate(true)" in repr(fields.recon)
    assert ".divergence()" in repr(fields["velocity"].recon)
    assert ".gradient()" in repr(fields["density"].recon)


def test_repr_names_what_is_missing(halos: xr.Dataset, observed: xr.Dataset) -> None:
    bare = observed.copy()
    del bare.attrs["redshift"]
    assert "still needs: redshift" in repr(bare.recon)
    real = halos.recon.select().recon.paint(16)
    assert "still needs" in repr(real.recon)
    assert "no field that is known here" in repr(xr.Dataset().recon)
    assert "nothing" in repr(xr.DataArray(np.zeros(3)).recon)
