"""Zarr v3 stores: write, open, describe, verify, wherever they lie.

Layout: a Dataset fills the root group; a DataTree (``/observed``, ``/linear``, ``/reconstructed``,
``/true``) one group per version of the universe.  Fields lie in chunks of at most 64 cells per
axis, one component or mass bin each.  The root's attributes say what the store is
(``cosmofields``) and whether it is whole (``complete``, stamped last).  Plain xarray opens it,
without a warning.
"""

from .checking import Damage, verify
from .contents import contents
from .locks import alone, refusals
from .places import Place, StorePath, check_writable, options_for, place_of, reach
from .reading import LEDGER, Chunks, check_whole, look, open_store, root_attrs
from .text import describe, side_text, summarize_facts
from .writing import begin, clear, finish, is_free, stamp, sweep, write_store

__all__ = [
    "LEDGER",
    "Chunks",
    "Damage",
    "Place",
    "StorePath",
    "alone",
    "begin",
    "check_whole",
    "check_writable",
    "clear",
    "contents",
    "describe",
    "finish",
    "is_free",
    "look",
    "open_store",
    "options_for",
    "place_of",
    "reach",
    "refusals",
    "root_attrs",
    "side_text",
    "stamp",
    "summarize_facts",
    "sweep",
    "verify",
    "write_store",
]
