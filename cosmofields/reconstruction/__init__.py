"""From a catalogue to density, velocity and momentum, in stages, in one store that can be resumed.

============  ==================================================================================
``/halos``     the selected tracers as they were painted
``/observed``  ``halo_density``, painted out of core
``/linear``    ``density`` and ``velocity`` of the whole box: a tile lacks the waves that carry it
``/reconstructed``  ``density``, then ``velocity``, then ``momentum``, network tile by network tile;
               without a network for it the momentum is the product, written with the velocity;
               with ``uncertainty`` also ``density_error`` and ``velocity_error``
``/restored``  with ``restore_power``: the same fields with the power of the true ones
============  ==================================================================================
"""

from .whole import reconstruct

__all__ = ["reconstruct"]
