"""``.recon`` on Datasets and DataArrays: thin methods over the public functions of the same names.

The accessor holds nothing but the object, and imports what a method needs when it is called.
Importing this registers it.
"""

from .dataarray import DataArrayRecon
from .dataset import DatasetRecon

__all__ = ["DataArrayRecon", "DatasetRecon"]
