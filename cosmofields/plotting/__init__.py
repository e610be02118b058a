"""Figures of a reconstruction and of its scores.  xarray in, Figure out.

They are made without ``pyplot``, at the size of one or two columns of a journal, so nothing stays
open and no setting changes; keep one with ``figure.savefig("name.pdf")``.  In a notebook
``%matplotlib inline`` displays what is returned.
"""

from .correlation import plot_correlation, plot_correlation_2d
from .histograms import plot_histograms
from .joint import plot_density_relation, plot_joint
from .slabs import plot_slab
from .slices import plot_slices
from .spectra import plot_multipoles, plot_spectra
from .training import open_curves, plot_training

__all__ = [
    "open_curves",
    "plot_correlation",
    "plot_correlation_2d",
    "plot_density_relation",
    "plot_histograms",
    "plot_joint",
    "plot_multipoles",
    "plot_slab",
    "plot_slices",
    "plot_spectra",
    "plot_training",
]
