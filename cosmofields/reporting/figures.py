"""Which figures a report shows, each with its caption and the numbers behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import xarray as xr

from .. import plotting
from ..conventions import AXES, box_facts, grid_of, label, listing, variable
from ..plotting.histograms import same_directions
from ..plotting.spectra import only_rounding
from . import numbers
from .numbers import Results, spectra_of
from .tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BANDS = (
    " Means over the sub-boxes, which are tapered at their edges; shades: one and two standard "
    "deviations from box to box, scaled to the volume that they cover (eq. 11)."
)
_OVERLAP = (
    " The sub-boxes overlap: the shades are a lower bound of the error of the mean, in the paper's "
    "layout 0.4 of the scatter of one box where 0.59 was measured."
)
HALOS = "halos, redshift space"
REAL = "real space"
_OBSERVED = (
    " The halos that went in, weighted as the network sees them and in redshift space, are drawn "
    "beside; the thin line is their shot noise, which is not subtracted. Of the halos alone the "
    "window of the mesh is taken out."
)
_MAPS = {"velocity": "|v|", "momentum": "|m|", "density": "1 + δ"}


@dataclass(frozen=True)
class Plan:
    """A figure that is still to be drawn."""

    section: str
    name: str
    title: str
    caption: str
    alt: str
    draw: Callable[[], Figure]
    columns: Callable[[Figure], Mapping[str, Any]]
    paper: str = ""
    note: str = ""

    def table(self, figure: Figure) -> Table:
        """The numbers behind the figure, once it is drawn."""
        return Table(self.name, f"{self.title}: numbers", self.columns(figure), self.note)


@dataclass
class Contents:
    """What there is to draw from."""

    true: xr.Dataset
    versions: Results
    results: Results
    bands: Results = field(default_factory=dict)  # combined sub-boxes, by label
    observed: xr.Dataset | None = None
    # Of the observed halo field: its power, multipoles and correlations.
    measured: Results = field(default_factory=dict)
    halos: xr.Dataset | None = None  # what `clustering` returned
    training: Any = None

    @property
    def judged(self) -> str:
        """Label of the prediction that the report is about."""
        return next(iter(self.results))

    @property
    def pair(self) -> dict[str, xr.Dataset]:
        """The judged result and the one beside it, where more would hide each other."""
        return dict(list(self.results.items())[:2])

    def beside(self, name: str) -> dict[str, xr.Dataset]:
        """Further curves for figures of the density: those of the observed halo field."""
        return {HALOS: self.measured[name]} if name in self.measured else {}

    @property
    def words_on_bands(self) -> str:
        """What the shades are, if there are any."""
        overlap = any(ds.attrs.get("volume_factor", 1) < 1 for ds in self.bands.values())
        return _BANDS * bool(self.bands) + _OVERLAP * overlap

    def there(self, *names: str) -> list[str]:
        """Those of some fields that every result has."""
        return [
            name
            for name in names
            if all(name in result["field"].values for result in self.results.values())
        ]


def plan(contents: Contents) -> Iterator[Plan]:
    """Figures in the order of the page; what the contents lack is left out."""
    yield from _slices(contents)
    yield from _distributions(contents)
    yield from _joint(contents)
    yield from _spectra(contents)
    yield from _fields_in_separation(contents)
    yield from _halos(contents)
    yield from _training(contents)


def _slices(c: Contents) -> Iterator[Plan]:
    if c.observed is None or "halo_density" not in c.observed:
        return
    observed, true = c.observed, _with_momentum(c.true)
    for name, of in (("velocity", "Figs. 4 and 5"), ("momentum", "Figs. 4 and 5"), ("density", "")):
        if not c.there(name):
            continue
        shown = {label: _with_momentum(c.versions[label]) for label in c.pair}
        yield Plan(
            "slices",
            f"slices_{name}",
            f"Slice: {name}",
            f"A slab of the box: the halos that went in, the true {_MAPS[name]} and what was "
            f"reconstructed, on one colour scale; the line of sight runs upwards."
            + ("" if name == "density" else " Arrows: the mean vector in the plane."),
            f"Maps of a slab side by side: halo density, true {name}, reconstructed {name} by "
            f"{' and '.join(shown)}.",
            _later(plotting.plot_slices, observed, true, shown, field=name),
            numbers.pixels,
            f"{of} of the paper" if of else "",
            "Positions in Mpc/h; means over the slab.",
        )


def _with_momentum(ds: xr.Dataset) -> xr.Dataset:
    """A momentum that is not there is density times velocity, as it is for ``evaluate``."""
    if "momentum" in ds or not ("density" in ds and "velocity" in ds):
        return ds
    product = (variable(ds, "density") * variable(ds, "velocity")).transpose("component", *AXES)
    return ds.assign(momentum=label("momentum", product.data, grid_of(ds), box_facts(ds)))


def _distributions(c: Contents) -> Iterator[Plan]:
    groups = (
        ("magnitudes", "density and magnitudes", ("density", *_of("magnitude"))),
        ("divergences", "divergences", _of("divergence")),
        ("directions", "directions", ("velocity", "momentum")),
    )
    for name, what, fields in groups:
        names = c.there(*fields)
        if not names:
            continue
        angles = name == "directions"
        alike = angles and same_directions(c.pair)
        names = names[:1] if alike else names
        yield Plan(
            "distributions",
            f"histograms_{name}",
            f"Histograms: {what}",
            (
                "Share of the cells by 1 − cos φ between the predicted and the true vector"
                if angles
                else "Share of the cells by value: truth in grey, predictions as lines"
            )
            + "; the legends give mean and scatter over all cells."
            + (" The momentum is (1 + δ) v and points where the velocity does." if alike else ""),
            f"Histograms over cells of {what}: {' and '.join(c.pair)}.",
            _later(plotting.plot_histograms, c.pair, names),
            _behind(numbers.angles if angles else numbers.histograms, c.pair, names),
            "Figs. 4 and 5 of the paper, histograms",
            "Cells in each bin.",
        )


def _of(part: str) -> tuple[str, str]:
    return f"velocity_{part}", f"momentum_{part}"


def _joint(c: Contents) -> Iterator[Plan]:
    best = {c.judged: c.results[c.judged]}
    groups = (
        ("joint_magnitudes", "density and magnitudes", "Fig. 6 of the paper", "magnitude"),
        ("joint_divergences", "divergences", "Fig. 7 of the paper", "divergence"),
    )
    for name, what, paper, part in groups:
        names = c.there(*(["density"] if part == "magnitude" else []))
        names += c.there(*_of(part))
        if names:
            yield Plan(
                "joint",
                name,
                f"Predicted against true: {what}",
                f"Cells by true and predicted value ({c.judged}). Contours hold the densest 68 and "
                "95 per cent; dashed, equality.",
                f"Two-dimensional histograms of predicted against true {what}.",
                _later(plotting.plot_joint, best, names),
                _behind(numbers.joint, best, names),
                paper,
                "Bins that hold cells.",
            )
    names = c.there(*_of("magnitude"), *_of("divergence"))
    if names and c.there("density"):
        yield Plan(
            "joint",
            "density_relation",
            "Fields against the density",
            f"Cells by density and by another field, predicted ({c.judged}, filled) and true "
            "(lines): the densest 68, 95 and 99.7 per cent.",
            "Contours of velocity, momentum and their divergences against density, predicted and "
            "true.",
            _later(plotting.plot_density_relation, best, names),
            _behind(numbers.density_relation, best, names),
            "Figs. 8 and 9 of the paper",
            "Bins that hold cells.",
        )


def _spectra(c: Contents) -> Iterator[Plan]:
    shown = c.bands or c.results
    groups = (
        ("density", ("density",), "Power spectrum: density", "Fig. 10 of the paper"),
        (
            "vectors",
            ("velocity", "momentum"),
            "Power spectra: velocity and momentum",
            "Fig. 11 of the paper",
        ),
        (
            "divergences",
            _of("divergence"),
            "Power spectra: divergences",
            "Fig. 12 of the paper",
        ),
        (
            "magnitudes",
            _of("magnitude"),
            "Power spectra: magnitudes",
            "",
        ),
        ("curls", _of("curl"), "Power spectra: curls", ""),
    )
    for name, fields, title, paper in groups:
        names = c.there(*fields)
        others = c.beside("power") if names == ["density"] else {}
        behind = {**shown, **numbers.as_results(others, "power", "power", "density")}
        if names:
            yield Plan(
                "spectra",
                f"spectra_{name}",
                title,
                "Power P(k) of truth and predictions, relative deviation R(k) (shaded: within "
                "0.1), and correlation r(k) with the truth."
                + (_OBSERVED if others else "")
                + _left_out(shown, names)
                + c.words_on_bands,
                f"{title}, with relative deviation and correlation below, for "
                f"{' and '.join(shown)}.",
                _later(plotting.plot_spectra, shown, names, others=others),
                _behind(numbers.by_label, behind, partial(spectra_of, fields=names)),
                paper,
                "k in h/Mpc; power in the square of the field's units times (Mpc/h)^3.",
            )


def _left_out(results: Results, fields: Sequence[str]) -> str:
    """Which predictions have no curve, since their power is that of rounding."""
    missing = [
        f"the {name.replace('_', ' ')} of {label}"
        for name in fields
        for label, result in results.items()
        if only_rounding(result.sel(field=name))
    ]
    return f" Zero to rounding, so not drawn: {listing(missing)}." if missing else ""


def _fields_in_separation(c: Contents) -> Iterator[Plan]:
    if not c.there("density"):
        return
    first = c.results[c.judged]
    if "multipoles_predicted" in first:
        shown = c.bands or c.results
        others = c.beside("multipoles")
        behind = {**shown, **numbers.as_results(others, "power", "multipoles", "density")}
        yield Plan(
            "correlations",
            "multipoles_density",
            "Power spectrum multipoles: density",
            "k P_ℓ(k) about the line of sight. The true field is in real space: its ℓ = 2 and 4 "
            "are zero but for the scatter of one box, and so should be the prediction's."
            + (_OBSERVED if others else "")
            + c.words_on_bands,
            "Monopole, quadrupole and hexadecapole of the density's power spectrum.",
            _later(plotting.plot_multipoles, shown, "density", others=others or None),
            _behind(numbers.poles, behind, "density", "multipoles", "k"),
            "Fig. 14 of the paper",
            "k in h/Mpc, P_l in (Mpc/h)^3.",
        )
    for name in c.there("density", "velocity"):
        if "xi_predicted" in first:
            others = c.beside("correlations") if name == "density" else {}
            behind = {**c.pair, **numbers.as_results(others, "xi", "xi", name)}
            yield Plan(
                "correlations",
                f"xi_{name}",
                f"Correlation function multipoles: {name}",
                "r² ξ_ℓ(r) about the line of sight; of a vector the sum over its components.",
                f"Multipoles of the correlation function of {name} against separation.",
                _later(plotting.plot_correlation, c.pair, name, others=others or None),
                _behind(numbers.poles, behind, name, "xi", "r"),
                "",
                "r in Mpc/h.",
            )
    if "xi_2d_predicted" in first:
        others = c.beside("correlations")
        behind = {**c.pair, **numbers.as_results(others, "xi_2d", "xi_2d", "density")}
        yield Plan(
            "correlations",
            "xi_2d_density",
            "Anisotropic correlation: density",
            "ξ(r⊥, r∥) of the true and the predicted density, with the contours 0.02, 0.06 and "
            "0.12 of the paper: circles, where redshift-space distortions are undone."
            + (" Beside them the halos that went in." if others else ""),
            "Contours of the correlation function across and along the line of sight.",
            _later(plotting.plot_correlation_2d, c.pair, "density", others=others or None),
            _behind(numbers.planes, behind, "density"),
            "Fig. 13 of the paper",
            "r in Mpc/h.",
        )


def _halos(c: Contents) -> Iterator[Plan]:
    if c.halos is None:
        return
    samples = c.halos
    # Without real space nothing is the truth; what was observed is then the reference.
    truth = str(samples["sample"].values[-1 if REAL in samples["sample"].values else 0])
    words = (
        " The halos as observed, moved back along the line of sight by the predicted velocity"
        + (", and in real space." if truth == REAL else ".")
    )
    yield Plan(
        "halos",
        "halos_xi_2d",
        "Anisotropic correlation: halos",
        "ξ(r⊥, r∥) with the contours 0.02, 0.06 and 0.12." + words,
        "Contours of the halo correlation function across and along the line of sight.",
        _later(plotting.plot_correlation_2d, samples, truth=truth),
        _behind(numbers.samples, samples, "xi_2d", "r_perp", "r_par"),
        "Fig. 13 of the paper, for halos",
        "r in Mpc/h.",
    )
    yield Plan(
        "halos",
        "halos_multipoles",
        "Power spectrum multipoles: halos",
        "k P_ℓ(k); the thin line is the shot noise, which is not subtracted, and the window of the "
        "mesh is taken out." + words,
        "Monopole, quadrupole and hexadecapole of the halos' power spectrum.",
        _later(plotting.plot_multipoles, samples, truth=truth),
        _behind(numbers.samples, samples, "power", "ell", "k"),
        "Fig. 14 of the paper, for halos",
        "k in h/Mpc, P_l in (Mpc/h)^3.",
    )
    yield Plan(
        "halos",
        "halos_xi",
        "Correlation function multipoles: halos",
        "r² ξ_ℓ(r)." + words,
        "Multipoles of the halo correlation function against separation.",
        _later(plotting.plot_correlation, samples, truth=truth),
        _behind(numbers.samples, samples, "xi", "ell", "r"),
        "",
        "r in Mpc/h.",
    )


def _training(c: Contents) -> Iterator[Plan]:
    if c.training is None:
        return
    yield Plan(
        "training",
        "training",
        "Loss against step",
        "Loss of the training and of the validation boxes.",
        "Curves of training and validation loss.",
        _later(plotting.plot_training, c.training),
        numbers.lines,
        "Fig. 3 of the paper",
    )


def _later(draw: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[], Any]:
    return lambda: draw(*args, **kwargs)


def _behind(read: Callable[..., Any], *args: Any) -> Callable[[Any], Any]:
    """Numbers that come from the results, not from the drawing."""
    return lambda figure: read(*args)


SECTIONS: Mapping[str, str] = {
    "slices": "Slices",
    "distributions": "Distributions over cells",
    "joint": "Cell by cell",
    "spectra": "Power spectra",
    "correlations": "The fields in separation and angle",
    "halos": "Halos moved back by the predicted velocity",
    "training": "Training",
}
