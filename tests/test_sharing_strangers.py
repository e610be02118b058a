"""A store of someone whom nobody knows: it opens, or it ends in our error, soon and small."""

from __future__ import annotations

import json
import os
import pickle
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import cosmofields as cf
from cosmofields.conventions import StoreError
from cosmofields.store import describe
from tests.fuzz.making import zstd_of_zeros

CHUNK = np.arange(4, dtype="<f4").tobytes()


def group(**attrs: Any) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": attrs}


def array(**changes: Any) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [4],
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {},
        "dimension_names": ["i"],
        **changes,
    }


def put(folder: Path, document: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "zarr.json").write_text(json.dumps(document))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """``make(a=array(...), root=group(...))``: a store of these nodes, with a chunk each."""

    def making(root: Any = None, inline: bool = False, **nodes: Any) -> Path:
        path = tmp_path / "theirs.zarr"
        root = group() if root is None else root
        if inline:
            nodes = {name.replace("__", "/"): node for name, node in nodes.items()}
            root = {
                **root,
                "consolidated_metadata": {
                    "kind": "inline",
                    "must_understand": False,
                    "metadata": nodes,
                },
            }
        put(path, root)
        for name, node in nodes.items():
            if ".." in name or "\0" in name or name.startswith("/"):
                continue
            put(path / name, node)
            (path / name / "c").mkdir(exist_ok=True)
            (path / name / "c" / "0").write_bytes(CHUNK)
        return path

    return making


def refused(path: Any, match: str) -> None:
    for call in (cf.open_store, describe, cf.verify):
        with pytest.raises(StoreError, match=match):
            call(path)


def test_the_plain_one_opens(make: Callable[..., Path]) -> None:
    for inline in (False, True):
        path = make(a=array(), inline=inline)
        np.testing.assert_array_equal(cf.open_store(path)["a"], np.arange(4))
        assert cf.verify(path) == []
        assert "not written by cosmofields" in describe(path)


# --- code ---


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("where", ["filters", "compressor"])
def test_pickles_are_not_opened(tmp_path: Path, where: str) -> None:
    path, trace = tmp_path / "theirs.zarr", tmp_path / "was-here"
    codec = {"id": "pickle", "protocol": 5}
    old = {
        "zarr_format": 2,
        "shape": [1],
        "chunks": [1],
        "dtype": "|O",
        "fill_value": None,
        "order": "C",
        "filters": [codec] if where == "filters" else [{"id": "vlen-utf8"}],
        "compressor": codec if where == "compressor" else None,
    }
    nodes = {
        ".zgroup": {"zarr_format": 2},
        "a/.zarray": old,
        "a/.zattrs": {"_ARRAY_DIMENSIONS": ["a"]},
    }
    (path / "a").mkdir(parents=True)
    (path / ".zgroup").write_text(json.dumps(nodes[".zgroup"]))
    (path / ".zmetadata").write_text(json.dumps({"metadata": nodes, "zarr_consolidated_format": 1}))
    (path / "a/0").write_bytes(pickle.dumps([Evil(trace)]))
    refused(path, "`a` is encoded with 'pickle'")
    assert not trace.exists()


@pytest.mark.parametrize("codec", ["numcodecs.pickle", "pickle", "their.own", "json2"])
def test_codecs_that_are_not_known(make: Callable[..., Path], codec: str) -> None:
    inner = [array()["codecs"][0], {"name": codec, "configuration": {}}]
    sharded = {
        "name": "sharding_indexed",
        "configuration": {"chunk_shape": [2], "codecs": inner, "index_codecs": []},
    }
    for codecs in (inner, [sharded], [codec], codec, None, [None]):
        refused(make(a=array(codecs=codecs)), "`a` is encoded with")


def test_an_older_store_of_others(tmp_path: Path) -> None:
    path = tmp_path / "theirs.zarr"
    ds = xr.Dataset({"a": ("x", np.arange(3.0)), "b": ("x", ["p", "q", "r"])}, {"x": [1, 2, 3]})
    ds.to_zarr(path, zarr_format=2, consolidated=True)
    xr.testing.assert_equal(cf.open_store(path).load(), ds)
    assert cf.verify(path) == []


# --- sizes ---


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"shape": [2**62]}, "expected two lists of whole numbers"),
        ({"shape": [2**50]}, "chunks; at most"),
        ({"shape": [-1]}, "whole numbers"),
        ({"shape": [4.0]}, "whole numbers"),
        ({"shape": [True]}, "whole numbers"),
        ({"shape": "4"}, "whole numbers"),
        ({"shape": None}, "whole numbers"),
        ({"shape": [4] * 40}, "whole numbers"),
        ({"shape": [4, 4]}, "whole numbers"),
        ({"chunk_grid": None}, "whole numbers"),
        ({"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0]}}}, "whole"),
        (
            {
                "shape": [2**40],
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2**40]}},
            },
            "a chunk of `a` has",
        ),
        (
            {
                "shape": [2**40],
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2**30]}},
                "dimension_names": ["a"],
            },
            "read into memory at once",
        ),
        (
            {
                "shape": [2**30],
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2**25]}},
                "attributes": {"units": "days since 2000-01-01"},
            },
            "read into memory at once",
        ),
    ],
)
def test_what_is_larger_than_can_be(
    make: Callable[..., Path], changes: dict[str, Any], match: str
) -> None:
    refused(make(a=array(**changes)), match)


def test_a_large_field_that_is_not_there_takes_no_memory(make: Callable[..., Path]) -> None:
    grid = {"name": "regular", "configuration": {"chunk_shape": [64] * 3}}
    path = make(a=array(shape=[8192] * 3, chunk_grid=grid, dimension_names=["x", "y", "z"]))
    assert cf.open_store(path)["a"].shape == (8192,) * 3


UNSAID = "zstd that does not say"
FRAMES = ["zstd behind what says", "zstd behind what is skipped"]


def packed(codec: str, n: int) -> bytes:
    """What becomes ``n`` zero bytes."""
    if codec == UNSAID:
        return zstd_of_zeros(n >> 17)
    if codec in FRAMES:
        skipped = b"\x5a\x2a\x4d\x18\x05\0\0\0hello"
        return (small_chunk("zstd") if codec == FRAMES[0] else skipped) + zstd_of_zeros(n >> 17)
    if codec == "zlib":  # in pieces, as no one has so much memory to spare
        packs = zlib.compressobj()
        return b"".join(packs.compress(bytes(2**20)) for _ in range(n >> 20)) + packs.flush()
    level = {"lzma": {"preset": 0}, "gzip": {"level": 9}}.get(codec, {})
    return bytes(numcodecs.get_codec({"id": codec, **level}).encode(bytes(n)))


def compressed(codec: str, **changes: Any) -> dict[str, Any]:
    """Metadata of an array, in Zarr's format 2: it takes all codecs of numcodecs."""
    return {"zarr_format": 2, "shape": [4], "chunks": [4], "dtype": "<f4", "fill_value": None,
            "order": "C", "filters": None, "compressor": {"id": codec}} | changes  # fmt: skip


def old(path: Path, document: dict[str, Any], chunk: bytes) -> Path:
    """A store of Zarr's format 2 with one array of one chunk."""
    (path / "a").mkdir(parents=True)
    (path / "a" / "0").write_bytes(chunk)
    nodes = {".zgroup": {"zarr_format": 2}, "a/.zarray": document}
    nodes["a/.zattrs"] = {"_ARRAY_DIMENSIONS": ["a"]}
    for key, node in nodes.items():
        (path / key).write_text(json.dumps(node))
    consolidated = {"metadata": nodes, "zarr_consolidated_format": 1}
    (path / ".zmetadata").write_text(json.dumps(consolidated))
    return path


@pytest.mark.parametrize(
    "codec", ["zstd", "blosc", "lz4", "gzip", "zlib", "bz2", "lzma", UNSAID, *FRAMES]
)
def test_a_chunk_that_becomes_more_than_its_array_says(tmp_path: Path, codec: str) -> None:
    document = compressed(codec.split()[0])
    path = old(tmp_path / "sound", document, small_chunk(codec))
    np.testing.assert_array_equal(cf.open_store(path)["a"], np.arange(4))
    # What does not say is let be up to 256 MB.
    n = 2**24 if codec in ("zstd", "blosc", "lz4") else 2**28 + 2**20
    path = old(tmp_path / "bomb", document, packed(codec, n))
    with pytest.raises(StoreError, match=r"the chunk a/0 can become .* bytes"):
        cf.open_store(path)
    (path / "a/0").write_bytes(b"")
    with pytest.raises(StoreError, match="a/0 cannot be decoded"):
        cf.open_store(path)


def small_chunk(codec: str) -> bytes:
    """The four numbers that the array is to hold."""
    if codec in (UNSAID, *FRAMES):  # a raw block
        return zstd_of_zeros(1)[:6] + (16 << 3 | 1).to_bytes(3, "little") + CHUNK
    return bytes(numcodecs.get_codec({"id": codec}).encode(CHUNK))


CHECKSUMS = ["crc32", "adler32", "crc32c", "fletcher32", "jenkins_lookup3"]


@pytest.mark.parametrize(
    "chain",
    [
        *(["shuffle", codec] for codec in ("zstd", "blosc", "lz4", "gzip", "zlib", "bz2", "lzma")),
        *([check, "zstd"] for check in CHECKSUMS),
        *(["zstd", check] for check in CHECKSUMS),
        *(["blosc", check] for check in CHECKSUMS),
        ["shuffle", "zlib", "fletcher32"],  # HDF5's order
        ["delta", "zstd"],
        ["astype", "blosc"],
        ["crc32"],
    ],
    ids="-".join,
)
def test_what_encoders_do_opens(tmp_path: Path, chain: list[str]) -> None:
    values = np.random.default_rng(0).standard_normal(50_000).astype("<f4").round(3)
    options: dict[str, dict[str, Any]] = {
        "delta": {"dtype": "<f4"}, "astype": {"encode_dtype": "<f8", "decode_dtype": "<f4"},
    }  # fmt: skip
    codecs = [numcodecs.get_codec({"id": name, **options.get(name, {})}) for name in chain]
    chunk = values
    for codec in codecs:
        chunk = codec.encode(chunk)
    configs = [codec.get_config() for codec in codecs]
    sides = {"shape": [50_000], "chunks": [50_000]}
    document = compressed("", **sides, filters=configs[:-1] or None, compressor=configs[-1])
    path = old(tmp_path / "a", document, bytes(chunk))
    found = cf.open_store(path)["a"]
    np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-4)
    assert cf.verify(path) == []


@pytest.mark.parametrize("n", [2**17 * 3 + 1, 2**21 + 4])
def test_frames_without_a_size_that_are_sound(tmp_path: Path, n: int) -> None:
    n -= n % 4
    values = np.random.default_rng(0).standard_normal(n // 4).astype("<f4")
    raw = values.tobytes()
    blocks = [raw[i : i + 2**17] for i in range(0, n, 2**17)]
    heads = [(len(b) << 3 | (b is blocks[-1])).to_bytes(3, "little") for b in blocks]
    chunk = zstd_of_zeros(1)[:6] + b"".join(h + b for h, b in zip(heads, blocks, strict=True))
    document = compressed("zstd", shape=[n // 4], chunks=[n // 4])
    np.testing.assert_array_equal(cf.open_store(old(tmp_path / "a", document, chunk))["a"], values)


def test_large_chunks_that_do_not_shrink_are_counted_once_through(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**32, 2**22, dtype="<u4")
    sides = {"shape": [2**22], "chunks": [2**22], "dtype": "<u4"}
    times = {}
    for codec in ("zlib", "gzip"):
        chunk = numcodecs.get_codec({"id": codec, "level": 1}).encode(values)
        path = old(tmp_path / codec, compressed(codec, **sides), bytes(chunk))
        began = time.process_time()
        np.testing.assert_array_equal(cf.open_store(path)["a"], values)
        times[codec] = time.process_time() - began
    assert max(times.values()) < 2  # it was 5 s where the rest was copied for each piece


def test_blocks_of_nothing(tmp_path: Path) -> None:
    n = 2**22
    chunk = zstd_of_zeros(1)[:6] + bytes(3 * n)
    path = old(tmp_path / "a", compressed("zstd", shape=[2 * n], chunks=[2 * n]), chunk)
    began = time.process_time()
    with pytest.raises(StoreError, match="a/0 can become"):
        cf.open_store(path)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("after", ["gzip", "shuffle"])
def test_what_is_done_to_compressed_chunks(tmp_path: Path, after: str) -> None:
    document = compressed("x", filters=[{"id": "zstd"}], compressor={"id": after})
    path = old(tmp_path / "a", document, CHUNK)
    refused(path, f"compressed with zstd, and then encoded with {after}")


def test_bombs_behind_a_checksum_or_of_another_format(tmp_path: Path) -> None:
    bomb = packed("zstd", 2**24)
    for check in CHECKSUMS:
        document = compressed("", filters=[{"id": "zstd"}], compressor={"id": check})
        chunk = numcodecs.get_codec({"id": check}).encode(bomb)
        path = old(tmp_path / check, document, bytes(chunk))
        with pytest.raises(StoreError, match=r"the chunk a/0 can become 16,777,216 bytes"):
            cf.open_store(path)
    raw = {"id": "lzma", "format": 3, "filters": [{"id": 33, "preset": 0}]}
    refused(old(tmp_path / "raw", compressed("", compressor=raw), b"x"), "in a format of its own")


@pytest.mark.parametrize("codec", ["zstd", "gzip", None])
def test_a_text_that_says_it_is_many(tmp_path: Path, codec: str | None) -> None:
    words = ["a", "bb", "ccc", "é"]
    text = numcodecs.VLenUTF8()
    options = {"dtype": "|O", "filters": [text.get_config()], "fill_value": ""}
    document = compressed("", **options, compressor={"id": codec} if codec else None)

    def stored(name: str, content: bytes) -> Path:
        packs = numcodecs.get_codec({"id": codec}).encode if codec else bytes
        return old(tmp_path / name, document, bytes(packs(content)))

    sound = bytes(text.encode(np.array(words, object)))
    assert [*cf.open_store(stored("sound", sound))["a"].values] == words
    many = (2**31 - 1).to_bytes(4, "little") + sound[4:]
    with pytest.raises(
        StoreError, match="says that it holds 2,147,483,647 texts, and its array says 4"
    ):
        cf.open_store(stored("many", many))


def test_a_zip_file_of_zeros(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zarr.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("zarr.json", bytes(2**26 + 1))
    refused(path, "larger than 64 MB")


def test_metadata_that_are_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    path.mkdir()
    with (path / "zarr.json").open("wb") as file:
        file.truncate(2**40)
    refused(path, "larger than 64 MB")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of a small store."""
    pytest.importorskip("icechunk")
    path = tmp_path / "theirs.icechunk"
    values = np.random.default_rng(0).standard_normal(4096)  # fewer would lie in the manifest
    cf.write_store(xr.Dataset({"a": ("i", values)}), path)
    np.testing.assert_array_equal(cf.open_store(path)["a"], values)
    return path


def test_metadata_of_a_repository_that_unpack_to_too_much(repository: Path) -> None:
    (manifest, *_) = (repository / "manifests").iterdir()
    header = manifest.read_bytes()[:39]
    some = packed(UNSAID, 2**19)
    assert numcodecs.Zstd().decode(some) == bytes(2**19)
    for bomb in (packed(UNSAID, 2**29 + 2**17), some * 1025):
        manifest.write_bytes(header + bomb)
        refused(repository, "manifests/.* unpacks to more than 512 MB")


def test_files_of_a_repository_that_are_none(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(100))
    (chunk, *_) = (path for path in (repository / "chunks").rglob("*") if path.is_file())
    chunk.rename(tmp_path / "chunk")
    chunk.symlink_to(tmp_path / "secret")
    refused(repository, "leads out of the store")
    chunk.unlink()
    os.mkfifo(chunk)
    refused(repository, "is neither a file nor a folder")
    chunk.unlink()
    (tmp_path / "chunk").rename(chunk)
    for name, most in (("snapshots/A", "256 MB"), ("chunks/A", "4096 MB")):
        with (repository / name).open("wb") as file:
            file.truncate(2**40)
        refused(repository, f"{name} is larger than {most}")
        (repository / name).unlink()
    # Under another name it would not be looked at.
    (repository / "snapshots").rename(repository / "chunks" / "s")
    (repository / "snapshots").symlink_to("chunks/s")
    refused(repository, "snapshots is a link to a folder")


# --- nesting, names, links ---


def test_lists_within_lists(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    path.mkdir()
    for depth, match in ((200, "nest more than"), (200_000, "is no JSON")):
        (path / "zarr.json").write_text(
            '{"zarr_format": 3, "node_type": "group", "attributes": {"a": '
            + "[" * depth
            + "]" * depth
            + "}}"
        )
        refused(path, match)


def test_groups_within_groups(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    names = ["g"] * 40
    for n in range(40):
        put(path.joinpath(*names[:n]), group())
    refused(path, "deeper than 12")
    nodes = {"/".join(names[: n + 1]): group() for n in range(40)}
    consolidated = {"kind": "inline", "must_understand": False, "metadata": nodes}
    put(path, {**group(), "consolidated_metadata": consolidated})
    refused(path, "deeper than 12")


@pytest.mark.parametrize(
    "name", ["../b", "a/../../b", "/etc", "a//b", "a\\b", "a\0b", ".", "b" * 999]
)
def test_names_that_lead_elsewhere(make: Callable[..., Path], name: str) -> None:
    root = group()
    root["consolidated_metadata"] = {
        "kind": "inline",
        "must_understand": False,
        "metadata": {name: array()},
    }
    refused(make(root=root), "a group or array of the name")


def test_links_that_lead_elsewhere(tmp_path: Path, make: Callable[..., Path]) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(CHUNK)
    path = make(a=array(), b=array())
    chunk = path / "a/c/0"
    chunk.unlink()
    chunk.symlink_to(secret)
    with pytest.raises(StoreError, match="a/c/0 leads out of the store"):
        cf.open_store(path).load()
    assert [damage.array for damage in cf.verify(path)] == ["a"]
    (path / "b/zarr.json").rename(tmp_path / "elsewhere.json")
    (path / "b/zarr.json").symlink_to(tmp_path / "elsewhere.json")
    refused(path, "leads out of the store")


def test_links_in_a_circle(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    put(path, group())
    for name in ("p", "q", "r"):
        (path / name).symlink_to(path)
    refused(path, "deeper than 12|more than 10,000")
    loop = tmp_path / "loop.zarr"
    loop.symlink_to(loop)
    with pytest.raises(StoreError, match="nothing at that path"):
        cf.open_store(loop)
    with pytest.raises(StoreError, match="NUL"):
        cf.open_store("a\0.zarr")


def test_consolidated_metadata_that_are_none(make: Callable[..., Path]) -> None:
    for inline in ([], 1, {"metadata": []}, {"metadata": {"a": 1}}):
        refused(make(root={**group(), "consolidated_metadata": inline}), "metadata")
    within = {**group(), "consolidated_metadata": {"metadata": {"../x": array()}}}
    refused(
        make(root={**group(), "consolidated_metadata": {"metadata": {"g": within}}}), "of its own"
    )


# --- attributes ---


@pytest.mark.parametrize(
    ("attrs", "match"),
    [
        ({"cosmofields": "1"}, "expected a dict"),
        ({"cosmofields": [1]}, "expected a dict"),
        ({"cosmofields": {"format_version": "1"}}, "expected a dict"),
        ({"cosmofields": {"format_version": True}}, "expected a dict"),
        ({"cosmofields": {"format_version": 1}}, "not whole"),
        ({"cosmofields": {"format_version": 1}, "complete": "yes"}, "not whole"),
        ({"cosmofields": {"format_version": 10**30}}, "Upgrade"),
    ],
)
def test_a_stamp_of_a_wrong_kind(
    make: Callable[..., Path], attrs: dict[str, Any], match: str
) -> None:
    with pytest.raises(StoreError, match=match):
        cf.open_store(make(root=group(**attrs), a=array()))


@pytest.mark.parametrize("wrong", [5, "text", [1, {}], {"a": 1}, None, 1e400])
def test_attributes_of_wrong_kinds(make: Callable[..., Path], wrong: Any) -> None:
    facts = (
        "box_size",
        "redshift",
        "cosmology",
        "periodic",
        "title",
        "history",
        "space",
        "authors",
    )
    known = (
        "units",
        "scale_factor",
        "_FillValue",
        "coordinates",
        "dtype",
        "calendar",
        "missing_value",
    )
    path = make(
        root=group(**dict.fromkeys(facts, wrong)),
        a=array(attributes=dict.fromkeys(known, wrong)),
    )
    opens(path)


def opens(path: Path) -> bool:
    """Whether a store opens; if not, then by our error."""
    try:
        cf.open_store(path)
        describe(path)
    except StoreError:
        return False
    return True


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@settings(max_examples=100)
@given(data=st.data())
def test_metadata_with_anything_anywhere(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.zarr"
    document = array(dimension_names=[data.draw(st.sampled_from(["a", "i"]))])
    root = group(cosmofields={"format_version": 1}, complete=True)
    at: Any = data.draw(st.sampled_from([document, root]))
    while isinstance(at, (dict, list)) and at:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(at[key], (dict, list)) and at[key] and data.draw(st.booleans()):
            at = at[key]
            continue
        at[key] = data.draw(JSON)
        break
    if data.draw(st.booleans()):
        root["consolidated_metadata"] = {
            "kind": "inline",
            "must_understand": False,
            "metadata": {"a": document},
        }
    put(path, root)
    put(path / "a", document)
    (path / "a/c").mkdir()
    (path / "a/c/0").write_bytes(CHUNK)
    opens(path)


@settings(max_examples=60)
@given(at=st.floats(0, 1), byte=st.integers(0, 255), cut=st.booleans())
def test_bytes_changed_in_metadata(
    small: bytes, tmp_path_factory: pytest.TempPathFactory, at: float, byte: int, cut: bool
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.zarr"
    path.mkdir()
    raw = bytearray(small)
    place = int(at * (len(raw) - 1))
    raw[place] = byte
    (path / "zarr.json").write_bytes(raw[:place] if cut else raw)
    opens(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "a.zarr"
    cf.write_store(xr.Dataset({"a": ("i", np.arange(3.0))}, attrs={"box_size": 100.0}), path)
    assert zarr.open_group(path, mode="r").metadata.consolidated_metadata is not None
    return (path / "zarr.json").read_bytes()
