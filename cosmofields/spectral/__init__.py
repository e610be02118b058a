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
    modes: a steep spectrum, such as a velocity's, wants 0.5 or more, and is right within 5 % above
    that if it falls no faster than k^-4.  ``modes`` counts the modes of the grid, which are no
    longer independent: a power over a wide bin varies as if there were <w^2>^2 / <w^4> times as
    many, 0.72 for ``taper=0.2``, 0.41 for 0.5.

Shot noise is never taken out.  Of a field that carries it, as the scalar coordinate ``shot_noise``
(beside ``share``, if it is one bin of several), the auto spectrum has it as a variable.
"""

from .powers import multipoles, power_spectrum, spectra, wedges
from .sums import WINDOWS, check_window, not_finite, pair

__all__ = [
    "WINDOWS",
    "check_window",
    "multipoles",
    "not_finite",
    "pair",
    "power_spectrum",
    "spectra",
    "wedges",
]
