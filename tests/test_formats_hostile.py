"""Files of strangers: damaged, cut off, or made to do harm, they end in an error of ours."""

from __future__ import annotations

import gzip
import pickle
import shutil
import struct
import time
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cosmofields.conventions import CatalogError, CosmofieldsError, MissingExtraError, StoreError
from cosmofields.readers import open_box, open_catalog, opening, text
from tests.format_files import COSMOLOGY, FACTS, WRITERS, block, make_table

pytest.importorskip("astropy")
pytest.importorskip("pyarrow")
DATA = Path(__file__).parent / "data"
GIVEN = {**FACTS, "los": "z"}
ROWS = 40


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small catalogue of each format, written once: its files, and what to say."""
    made: dict[str, tuple[Path, Any, dict[str, Any]]] = {}

    def get(kind: str) -> tuple[Path, Any, dict[str, Any]]:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = (folder, *WRITERS[kind][1](folder, make_table(ROWS)))
        return made[kind]

    return get


def everything(source: Any, options: dict[str, Any]) -> None:
    """Open and read all there is."""
    with warnings.catch_warnings(), dask.config.set(scheduler="synchronous"):
        warnings.simplefilter("ignore")  # libraries warn of what they then refuse
        open_catalog(source, **options).compute()


def refuses(source: Any, options: dict[str, Any]) -> bool:
    """Whether it ends in an error of ours; any other is raised."""
    start = time.process_time()
    try:
        everything(source, options)
    except CosmofieldsError:
        return True
    finally:
        assert time.process_time() - start < 10
    return False


def largest(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


# --- cut off, emptied, taken for another ---


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind not in ("csv", "savetxt")])
def test_truncated(kind: str, kept: float, small: Any, tmp_path: Path) -> None:
    folder, source, options = small(kind)
    shutil.copytree(folder, tmp_path / "copy")
    here = str(source).replace(str(folder), str(tmp_path / "copy"))
    path = largest(tmp_path / "copy")
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    refused = refuses(here, options)
    # A text does not say how long it is; of some, the last bytes only fill up or index the rest.
    harmless = WRITERS[kind][0] == "rockstar" and kept > 0.1
    harmless |= kept == 0.999 and kind in ("compaso", "fits", "fastpm")
    assert refused or harmless


@pytest.mark.parametrize("kind", WRITERS)
def test_taken_for_another(kind: str, small: Any) -> None:
    _, source, options = small(kind)
    for other in ("gadget", "gadget_binary", "subfind", "swift", "pysco", "compaso", "rockstar",
                  "bigfile", "group_tab", "fits", "parquet", "npz", "zarr"):  # fmt: skip
        # Any text with the right columns may be a list of Rockstar without its head.
        if other != WRITERS[kind][0] and not (
            other == "rockstar" and kind in ("csv", "csv-packed", "savetxt")
        ):
            assert refuses(source, {**options, "format": other}), other


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"\xff" * 100, b"x", b"\n\n\n", b"#\n#\n"])
@pytest.mark.parametrize("name", ["a.h5", "a.csv", "a"])
def test_no_catalogue(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert refuses(tmp_path / name, GIVEN)
    assert refuses(tmp_path, GIVEN)


# --- bytes at random ---


def damaged(whole: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """Bytes with pieces overwritten, and now and then one taken out or put in."""
    data = bytearray(whole)
    for at, shift, new in changes:
        place = at % (len(data) + 1)
        data[place : place + max(len(new) + shift, 0)] = new
    return bytes(data)


CHANGES = st.lists(
    st.tuples(
        st.integers(0, 2**16), st.sampled_from([0, 0, 0, 0, 0, 0, 0, -4, 1]), st.binary(max_size=8)
    ),
    min_size=1,
    max_size=4,
)
# Of each, the file that holds the header: nearly all of it decides where the rest lies.
FUZZED = ["gadget2", "gadget-format1", "gadget-format2", "swift", "gadget4-groups", "pysco",
          "halotools", "compaso", "group_tab", "rockstar", "csv", "csv-packed", "fits", "parquet",
          "npz", "npz-packed"]  # fmt: skip


@pytest.mark.parametrize("kind", FUZZED)
def test_fuzz(kind: str, small: Any, tmp_path: Path) -> None:
    folder, source, options = small(kind)
    shutil.copytree(folder, tmp_path / "copy")
    here = str(source).replace(str(folder), str(tmp_path / "copy"))
    path = largest(tmp_path / "copy")
    whole = path.read_bytes()

    # Text has no structure to get lost in.
    n = 50 if WRITERS[kind][0] in ("rockstar", "csv") else 200

    @settings(max_examples=n, suppress_health_check=[HealthCheck.too_slow])
    @given(CHANGES)
    def run(changes: list[tuple[int, int, bytes]]) -> None:
        path.write_bytes(damaged(whole, changes))
        refuses(here, options)

    run()


def test_fuzz_of_a_bigfile(small: Any, tmp_path: Path) -> None:
    folder, source, options = small("fastpm")
    shutil.copytree(folder, tmp_path / "copy")
    here = str(source).replace(str(folder), str(tmp_path / "copy"))
    files = sorted(p for p in Path(here).rglob("*") if p.name in ("header", "attr-v2"))
    texts = {path: path.read_bytes() for path in files}

    @settings(max_examples=200)
    @given(st.sampled_from(files), CHANGES)
    def run(path: Path, changes: list[tuple[int, int, bytes]]) -> None:
        path.write_bytes(damaged(texts[path], changes))
        refuses(here, options)
        path.write_bytes(texts[path])

    run()


# --- made to do harm ---


class Bomb:
    """What a pickle could do."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was opened",))


def test_no_pickle_is_opened(tmp_path: Path) -> None:
    table = {"position": np.ones((5, 3)), "mass": np.full(5, 1e12)}
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        for name, values in table.items():
            with file.open(f"{name}.npy", "w") as member:
                np.save(member, values)
        with file.open("velocity.npy", "w") as member:
            member.write(b"\x93NUMPY\x01\x00")
            head = b"{'descr': '|O', 'fortran_order': False, 'shape': (5,), }\n"
            member.write(struct.pack("<H", len(head)) + head + pickle.dumps(Bomb()))
    assert set(open_catalog(tmp_path / "a.npz", **GIVEN).compute()) == {"position", "mass"}
    assert refuses(tmp_path / "a.npz", {**GIVEN, "velocity": "velocity"})


def test_declared_sizes_are_checked_before_memory_is_taken(tmp_path: Path) -> None:
    rows = 10**13
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("position", (rows, 3), "f4", chunks=(1000, 3))  # nothing written
    with pytest.raises(StoreError, match="declares 120000000000000 bytes for position, of which"):
        open_catalog(tmp_path / "a.h5", **GIVEN)

    head = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({rows}, 3), }}\n".encode()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("pos.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head)
    with pytest.raises(StoreError, match="declares 240000000000000 bytes"):
        open_catalog(tmp_path / "a.npz", **GIVEN)

    (tmp_path / "group_tab").write_bytes(struct.pack("<iiiQi", 2**31 - 1, 2**31 - 1, 0, 0, 1))
    assert refuses(tmp_path / "group_tab", {**GIVEN, "format": "group_tab"})

    block(tmp_path / "big" / "Position", np.ones((5, 3), "f4"))
    header = tmp_path / "big" / "Position" / "header"
    header.write_text(f"DTYPE: <f4\nNMEMB: 3\nNFILE: 1\n000000: {rows} : 1 : 1\n")
    with pytest.raises(StoreError, match=f"has 60 bytes where {rows} rows of 3 float32"):
        open_catalog(tmp_path / "big", **GIVEN)
    header.write_text("DTYPE: <f4\nNMEMB: 3\nNFILE: 1\n../../x: 5 : 1 : 1\n")
    with pytest.raises(StoreError, match="declares 1 pieces and lists 0"):
        open_catalog(tmp_path / "big", **GIVEN)


def test_more_chunks_than_memory_holds(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, source, options = small("csv")
    monkeypatch.setattr(opening, "CHUNKS", 10)
    with pytest.raises(CatalogError, match="40 rows would be 20 chunks of 2; expected at most 10"):
        open_catalog(source, **options, rows=2)


def test_values_that_lie_in_other_files(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(60))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        outside = [(str(tmp_path / "secret"), 0, 60)]
        file.create_dataset("position", (5, 3), "f4", external=outside)
    with pytest.raises(StoreError, match="takes its values from other files, which is refused"):
        open_catalog(tmp_path / "a.h5", **GIVEN)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["position"] = h5py.ExternalLink(str(tmp_path / "a.h5"), "position")
        file["Position"] = h5py.SoftLink("/nowhere")
    with pytest.raises(CosmofieldsError, match="it holds none at all"):
        open_catalog(tmp_path / "b.h5", **GIVEN)


def test_groups_without_end(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file
        for _ in range(300):
            group = group.create_group("g")
        group["position"] = np.ones((5, 3))
        file["back"] = file  # the file in itself
    assert refuses(tmp_path / "a.h5", GIVEN)


def test_a_tree_of_yaml_that_is_deep_or_another_type(small: Any, tmp_path: Path) -> None:
    for tree in (b"data: " + b"[" * 5000, b"- 1\n- 2", b"data: 3\nheader: {}", b"\t: : :",
                 b"header: !!python/object/apply:os.system ['false']\ndata: {}"):  # fmt: skip
        (tmp_path / "a.asdf").write_bytes(b"#ASDF 1.0.0\n" + tree + b"\n...\n")
        assert refuses(tmp_path / "a.asdf", GIVEN)
    (tmp_path / "a.asdf").write_bytes(b"#ASDF 1.0.0\n" + b"a: 1\n" * 10**6)
    assert refuses(tmp_path / "a.asdf", GIVEN)
    # The name of another file, in place of the number of a block.
    folder, _, options = small("compaso")
    whole = (folder / "halo_info_000.asdf").read_bytes()
    node = whole.index(b"x_L2com:")
    at = whole.index(b"source: ", node)
    other = b"source: b.asdf" + whole[whole.index(b"\n", at) :]
    (tmp_path / "a.asdf").write_bytes(whole[:at] + other)
    assert refuses(tmp_path / "a.asdf", options)


def test_lines_without_end(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x" * 200_000)
    with pytest.raises(StoreError, match="a line of over 65536 bytes"):
        open_catalog(tmp_path / "a.csv", **GIVEN)
    (tmp_path / "b.csv").write_text("x,y,z\n1,2,3\n\n4,5,6\n")
    assert refuses(tmp_path / "b.csv", GIVEN)
    (tmp_path / "c.csv").write_text("x,y,z\n1,2,3\n4,5\n")
    assert refuses(tmp_path / "c.csv", GIVEN)
    (tmp_path / "d.csv").write_text("x,y,z\n1,2,three\n")
    with pytest.raises(StoreError, match="cannot read z, rows 0 to 0"):
        open_catalog(tmp_path / "d.csv", **GIVEN).compute()
    (tmp_path / "e.csv").write_text("x,y,z\n1,2,3\n4,5,6\n\n \n\n")
    assert open_catalog(tmp_path / "e.csv", **GIVEN).compute().sizes["halo"] == 2


# --- what is missing ---


@pytest.mark.parametrize(("kind", "module"), [("fits", "astropy"), ("parquet", "pyarrow")])
def test_an_extra_that_is_missing(
    kind: str, module: str, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, source, options = small(kind)
    real = opening.understand.__globals__["tables"].io_extra.__globals__["require_extra"]

    def missing(name: str, extra: str, purpose: str) -> Any:
        if name.startswith(module):
            raise MissingExtraError(f"{purpose} needs {name!r}: pip install 'cosmofields[{extra}]'")
        return real(name, extra, purpose)

    monkeypatch.setattr("cosmofields.readers.parts.require_extra", missing)
    with pytest.raises(MissingExtraError, match=rf"Reading .* needs '{module}.*cosmofields\[io\]"):
        open_catalog(source, **options)


# --- what libraries wrote ---


@pytest.fixture
def grid() -> Iterator[np.ndarray[Any, Any]]:
    return np.arange(30.0).reshape(10, 3)


def test_a_snapshot_that_swiftsimio_wrote(grid: Any) -> None:
    """In kpc and Gyr; its velocities say a^1 and mean a^0, at a = 0.5."""
    cosmology = {"Omega_m": 0.3, "h": 0.7}
    ds = open_catalog(DATA / "swiftsimio.hdf5", cosmology=cosmology)
    assert ds.attrs["source"]["format"] == "swift"
    assert ds.attrs["box_size"] == pytest.approx(70)
    assert ds.attrs["redshift"] == 1.0
    np.testing.assert_allclose(ds["position"], 0.7 * 3.1 * grid, rtol=1e-5)
    np.testing.assert_allclose(ds["velocity"], 20 * (grid - 15), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(ds["mass"], 0.7e10 * np.arange(1, 11), rtol=1e-3)


def test_a_folder_that_bigfile_wrote(grid: Any) -> None:
    ds = open_catalog(DATA / "bigfile")
    assert ds.attrs["source"]["format"] == "bigfile"
    assert {key: ds.attrs[key] for key in ("box_size", "redshift", "cosmology")} == {
        "box_size": 100.0, "redshift": 1.0, "cosmology": {"Omega_m": 0.3, "h": 0.7},
    }  # fmt: skip
    assert ds.sizes["particle"] == 10
    np.testing.assert_array_equal(ds["position"], (3.1 * grid).astype(np.float32))
    np.testing.assert_array_equal(ds["velocity"], 20 * (grid - 15))
    np.testing.assert_allclose(ds["mass"], 1e10 * np.arange(1, 11), rtol=1e-6)


def test_a_catalogue_as_abacusutils_reads_it(small: Any) -> None:
    """The same columns through the library of AbacusSummit, whole files at a time."""
    import asdf
    from abacusnbody.data import asdf as _  # noqa: F401 registers blsc

    folder, source, options = small("compaso")
    ds = open_catalog(source, **options).compute()
    got = []
    for path in sorted(folder.glob("*.asdf")):
        with asdf.open(path) as file:
            got.append(np.array(file["data"]["x_L2com"]))
    theirs = np.concatenate(got).astype(np.float64) * 300 + 150
    np.testing.assert_allclose(ds["position"], theirs.astype(np.float32), rtol=1e-7)
    assert ds.attrs["cosmology"]["Omega_m"] == COSMOLOGY["Omega_m"]


# --- what is told what to do ---


def test_a_text_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.csv.gz"
    row = b"1,2,3,4,5,6,1e13\n"
    path.write_bytes(gzip.compress(b"x,y,z,vx,vy,vz,mass\n" + row * 10_000))
    assert open_catalog(path, **FACTS).sizes["halo"] == 10_000
    monkeypatch.setattr(text, "UNPACKED", 100_000)
    with pytest.raises(StoreError, match="unpacks to more than.*gunzip -k"):
        open_catalog(path, **FACTS)


def test_what_is_packed_and_no_text(tmp_path: Path, small: Any) -> None:
    packed = {
        f"a.{kind}.gz": gzip.compress(small(kind)[1].read_bytes()) for kind in ("fits", "npz")
    }
    for name, content in {**packed, "a.gz": b"\x1f\x8bdamaged", "a.csv.xz": b"\xfd7zX"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StoreError, match="is packed, and not a text.*: unpack it first"):
            open_catalog(tmp_path / name, **FACTS)


def test_a_file_that_is_given_twice(small: Any) -> None:
    _, source, options = small("csv")
    with pytest.raises(StoreError, match="is given twice"):
        open_catalog([source, source], **options)


def test_cleaning_of_abacus_is_no_catalogue(tmp_path: Path) -> None:
    import asdf

    header = {"BoxSizeHMpc": 300.0, "Redshift": 0.5}
    tree = {"header": header, "data": {"N_total": np.arange(5, dtype=np.uint32)}}
    asdf.AsdfFile(tree).write_to(tmp_path / "cleaned_halo_info_000.asdf")
    with pytest.raises(StoreError, match=r"cleaned, not where they are.*CompaSOHaloCatalog"):
        open_catalog(tmp_path / "cleaned_halo_info_000.asdf")


@pytest.mark.parametrize("kind", ["gadget-format1", "gadget-format2"])
def test_a_binary_snapshot_of_other_numbers(kind: str, small: Any, tmp_path: Path) -> None:
    folder, source, options = small(kind)
    shutil.copytree(folder, tmp_path / "copy")
    path = largest(tmp_path / "copy")
    whole = path.read_bytes()
    order, at = (">", 4) if kind == "gadget-format1" else ("<", 20)
    for index, value in ((1, 2**31 - 1), (1, -1), (4, 7), (0, 6)):
        here = at + 4 * index
        path.write_bytes(whole[:here] + struct.pack(f"{order}i", value) + whole[here + 4 :])
        with pytest.raises(StoreError, match="damaged"):
            open_catalog(str(source).replace(str(folder), str(tmp_path / "copy")), **options)
    # Time, redshift, box and Omega_m, as they would lie where GADGET-4 has others.
    for offset, value in ((72, 0.5), (80, 3.0), (128, 0.0), (136, -1.0)):
        here = at + offset
        path.write_bytes(whole[:here] + struct.pack(f"{order}d", value) + whole[here + 8 :])
        with pytest.raises(StoreError, match="which no snapshot has.*GADGET-4's own header"):
            open_catalog(str(source).replace(str(folder), str(tmp_path / "copy")), **options)
    # Files of the snapshot that are not there.
    if kind == "gadget-format1":
        path.write_bytes(whole)
        with pytest.raises(StoreError, match=r"is one of 2 files.*snap_003\.\*"):
            open_catalog(path, **options)


def test_a_zip_file_whose_list_of_files_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("zarr.json", "{}")
    raw = path.read_bytes()
    at = raw.rindex(b"PK\x01\x02")
    for damage in (b"XX", b"PK\x01\x02" + b"\xff" * 4):  # no entry; of a version that nobody has
        path.write_bytes(raw[:at] + damage + raw[at + len(damage) :])
        for call in (open_catalog, open_box):
            with pytest.raises(StoreError, match="zip"):
                call(path)


@pytest.mark.parametrize("key", ["TFIELDS", "NAXIS"])
@pytest.mark.parametrize("how", ["as it is", "lower case", "first of two", "behind a plus"])
def test_headers_of_fits_that_claim_too_much(
    tmp_path: Path, small: Any, key: str, how: str
) -> None:
    whole = small("fits")[1].read_bytes()
    last = (
        whole.rindex(key.ljust(8).encode() + b"=") if key == "TFIELDS" else whole.index(b"NAXIS ")
    )
    card = whole[last : last + 80]
    claim = (
        {
            "as it is": f"{key:8}= {2**24:20}",
            "lower case": f"{key.lower():8}= {2**24:20}",
            "first of two": f"{key:8}= {2**24:20}",
            "behind a plus": f"{key:8}= + {2**24:18}",
        }[how]
        .encode()
        .ljust(80)
    )
    rest = whole[last + 80 :]
    if how == "first of two":  # in the place of spaces behind END
        end = rest.index(b"END".ljust(80))
        assert not rest[end + 80 : end + 160].strip()
        rest = rest[:end] + card + rest[end : end + 80] + rest[end + 160 :]
    path = tmp_path / "a.fits"
    path.write_bytes(whole[:last] + claim + rest)
    began = time.process_time()
    with pytest.raises(StoreError, match=rf"claims {key} = 16777216|cannot be read as FITS"):
        open_catalog(path, **FACTS)
    assert time.process_time() - began < 5


def test_a_header_of_fits_without_end(tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    path.write_bytes(b"SIMPLE  =                    T".ljust(80) + b" " * 2**23)
    with pytest.raises(StoreError, match="has a header of over 4 MB"):
        open_catalog(path, **FACTS)


def test_a_table_of_fits_behind_what_is_none(tmp_path: Path, small: Any) -> None:
    from astropy.io import fits

    expected, source, options = small("fits")
    with fits.open(source) as file:
        extra = [fits.ImageHDU(np.zeros((40, 30))), fits.ImageHDU()]
        groups = fits.GroupsHDU(
            fits.GroupData(np.zeros((3, 4, 5)), parnames=["a"], pardata=[np.zeros(3)], bitpix=-32)
        )
        fits.HDUList([groups, *extra, file[1], *extra]).writeto(tmp_path / "a.fits")
    found = open_catalog(tmp_path / "a.fits", **options).compute()
    plain = open_catalog(source, **options).compute()
    np.testing.assert_array_equal(found["position"], plain["position"])
