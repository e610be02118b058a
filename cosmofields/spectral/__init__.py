"""Spectra of fields: power, ratios of two spectra, multipoles and wedges about a line of sight.

They need a whole box, periodic or tapered, and are eager: a lazy field is computed once, in one
task or, where that does not fit, by strips of its modes, of which only the sums come back (and
once more before that for the mean under a taper).  Sums run in float64, in an order that does not
depend on the number of threads.

All take the same two options.

``window``
    Takes the window of the mass assignment out, mode by mode.  None: nothing.  ``"cic"``: each
    field is divided by prod sinc^2(k_i H_i / 2), sinc x = sin x / x, H the cell: the cloud in cell
    (Hockney & Eastwood 1981), and right where aliases are weak: for an interlaced mesh, or well
    below Nyquist.  ``"cic-aliased"``: each power is divided by prod (1 - 2/3 sin^2(k_i H_i / 2)),
    the same window with its aliases, exact for white noise, such as shot noise (Jing 2005, ApJ 620,
    559, eq. 20).
``taper``
    Fraction in (0, 1], for a box that is not periodic: the power is that of w (f - mean) over
    <w^2>, with w a Tukey window that rises over ``taper`` / 2 of each axis and falls likewise, and
    the mean <w f> / <w>.  It smooths the spectrum over a fundamental mode or two, and the first bin
    misses what the mean took.  The faces of the box still leak below some 2 / ``taper`` fundamental
    modes: 0.35 suits most fields.  Above that a power that falls no faster than k^-3, or as a
    velocity's does in linear theory, is right within 5 %, one of k^-4 within 10 %.  ``modes``
    counts the modes of the grid, which are no longer independent: a power over a wide bin varies
    as if there were <w^2>^2 / <w^4> times as many, 0.72 for ``taper=0.2``, 0.55 for 0.35, 0.41 for
    0.5.

Shot noise is never taken out.  Of a scalar field that carries it, as the scalar coordinate
``shot_noise``, the auto spectrum has it as a variable.  The coordinate is the noise N of the field
over its own mean, as :func:`~cosmofields.painting.paint` and
:func:`~cosmofields.linear.halo_overdensity` set it, and xarray keeps it through arithmetic.  So the
noise of a field of mean m is N m^2: of one mass bin, of its multiples, of 1 + delta.  A contrast
(abs(m) < 0.1, or 1e-4 beside the coordinate ``share`` of a mass bin) has N itself: that of delta as
it was painted, and what became of delta since, such as a factor or a smoothing, cannot be known.
Nor can, under a taper, the mean of the box that a part is from: there a contrast or 1 + delta has
N, and a mass bin no noise.
"""

from .powers import multipoles, power_spectrum, spectra, wedges
from .sums import ELLS, WINDOWS, check_ells, check_window, los_axis, not_finite, pair

__all__ = [
    "ELLS",
    "WINDOWS",
    "check_ells",
    "check_window",
    "los_axis",
    "multipoles",
    "not_finite",
    "pair",
    "power_spectrum",
    "spectra",
    "wedges",
]
