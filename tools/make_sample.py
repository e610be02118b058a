"""Make the embedded sample, cosmofields/data/sample.zarr, from the test box.

    python tools/make_sample.py box_105.h5

The halos and the density are those of the file, bit for bit (its fields carry 10 significant bits).
The velocity is rounded to ``STEP`` and the momentum left out, because the four fields together are
what would make the sample large.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
import xarray as xr

from cosmofields.readers import open_box
from cosmofields.store import write_store
from cosmofields.tutorial import sample_path

STEP = 0.5  # km/s; a power of two, so that the rounded numbers end in zero bits


def make_sample(box: Path, path: Path) -> None:
    """Write the sample made from the HDF5 file ``box`` to ``path``."""
    halos, true = open_box(box)
    source = {
        **halos.attrs["source"],
        "sha256": hashlib.sha256(box.read_bytes()).hexdigest(),
        "made_by": "tools/make_sample.py",
    }
    exact = true["velocity"].compute()
    velocity = (STEP * (exact / STEP).round()).astype(np.float32)
    rms = float(np.sqrt(np.mean((velocity - exact).astype(np.float64) ** 2)))
    velocity.attrs = {
        **exact.attrs,
        "rounding": f"to the nearest {STEP:g} km/s, rms error {rms:.2f} km/s",
    }
    density = true["density"].compute()
    density.attrs["rounding"] = "10 significant bits, relative error below 1e-3, as in the source"
    sample = {
        "/halos": halos.assign_attrs(source=source),
        "/true": xr.Dataset(
            {"density": density, "velocity": velocity},
            attrs={
                **true.attrs,
                "source": source,
                "comment": "momentum = density * velocity; cosmofields.tutorial adds it",
            },
        ),
    }
    write_store(
        xr.DataTree.from_dict(sample),
        path,
        overwrite=True,
        level=9,
        title="cosmofields sample: halos and true matter fields of a 300 Mpc/h box at z = 0.59",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("box", type=Path, help="box_105.h5")
    make_sample(parser.parse_args().box, sample_path())
