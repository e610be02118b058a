"""What an issue should say."""

import io

import numpy as np

import cosmofields as cf


def test_versions():
    text = io.StringIO()
    cf.show_versions(text)
    first, second, *rest = text.getvalue().splitlines()
    assert first.startswith("cosmofields ")
    assert second.startswith("Python 3")
    found = dict(line.split() for line in rest)
    assert found["numpy"] == np.__version__
    assert {"torch", "zarr", "pytorch-lightning"} <= found.keys()
