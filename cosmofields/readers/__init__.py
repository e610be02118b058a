"""Files of others: simulated boxes, and catalogues larger than memory, in many formats.

A file is a table of parts (`parts`), whatever holds it: HDF5 and Zarr (`hdf5`), text (`text`),
FITS, Parquet and NPZ (`tables`), and the containers of single codes (`binary`, `asdf`, `bigfile`).
What the parts mean, and how they become Mpc/h, km/s and Msun/h, is said beside (`gadget` for its
many kin in HDF5); `formats` knows them all by their contents, `opening` makes them lazy.
"""

from .boxes import open_box
from .formats import FORMATS
from .opening import ROWS, open_catalog

__all__ = ["FORMATS", "ROWS", "open_box", "open_catalog"]
