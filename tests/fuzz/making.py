"""Cases made of whole ones, for each target."""

from __future__ import annotations

import json
import pickle
from typing import Any

from .cases import Case, Odd, Tree
from .containers import (
    Evil,
    asdf_changed,
    fits_changed,
    group_tab_changed,
    hdf5_changed,
    npy_changed,
    parquet_changed,
    zip_changed,
)
from .draws import REAL, TEXT, WHOLE, Draws, chance, nested, pick, weird
from .mutations import bytes_changed, json_changed, json_text, text_changed

FORMATS = ("swift", "gadget", "subfind", "pysco", "hdf5", "zarr", "bigfile", "compaso",
           "group_tab", "rockstar", "csv", "fits", "parquet", "npz")  # fmt: skip


def made(whole: list[Case], draws: Draws) -> Case:
    """A case made of one of these."""
    case = pick(draws, whole)
    files = dict(case.files)
    maker = {"readers": _reader, "stores": _store, "models": _model}[case.target]
    options = dict(case.options)
    if case.target == "readers" and case.kind in ("zarr", "zarr-2", "box-store"):
        maker = _store
    maker(case, files, draws)
    if chance(draws, 25):
        _odd(files, draws)
    if case.target == "readers" and "box" not in options and chance(draws, 10):
        options["format"] = pick(draws, FORMATS)
    source = case.source
    if case.target == "readers" and chance(draws, 40):
        source = pick(draws, ["", pick(draws, sorted(files))])
    return Case(case.target, case.kind, files, source, options)


def _odd(files: Tree, draws: Draws) -> None:
    """What is no plain file in the place of one, or beside it."""
    name = pick(draws, sorted(files))
    odd = pick(
        draws,
        [Odd("link", "../outside/secret.h5"), Odd("link", "/dev/zero"), Odd("link", "."),
         Odd("link", name.rpartition("/")[2]), Odd("link", "/etc"), Odd("pipe"),
         Odd("sparse", 2**31), Odd("sparse", 2**40), Odd("sparse", 0)],
    )  # fmt: skip
    if draws.whole(0, 3):
        files[name] = odd
    else:
        files[
            f"{name.rpartition('/')[0]}/{pick(draws, ['zzz', 'c', '0', 'g', 'header'])}".lstrip("/")
        ] = odd


# --- catalogues ---


def _reader(case: Case, files: Tree, draws: Draws) -> None:
    name = pick(draws, sorted(files))
    data = files[name]
    assert isinstance(data, bytes)
    suffix = name.rpartition(".")[2]
    if chance(draws, 30):
        files[name] = draws.raw(200)
    elif not draws.whole(0, 2) and case.kind not in ("csv", "savetxt", "rockstar", "hlist"):
        files[name] = bytes_changed(data, draws)
    elif suffix in ("hdf5", "h5"):
        files[name] = hdf5_changed(data, draws)
    elif suffix == "fits":
        files[name] = fits_changed(data, draws)
    elif suffix == "npz":
        files[name] = zip_changed(data, draws, npy_changed)
    elif suffix == "parquet":
        files[name] = parquet_changed(data, draws)
    elif suffix == "asdf":
        files[name] = asdf_changed(data, draws)
    elif name.startswith("group_tab"):
        files[name] = group_tab_changed(data, draws)
    elif suffix in ("csv", "list", "txt") or name.endswith(("header", "attr-v2")):
        files[name] = text_changed(data, draws)
        if chance(draws, 3):
            files[name] = bytes_changed(files[name], draws)
    else:
        files[name] = bytes_changed(data, draws)


# --- stores ---

CODECS = ["bytes", "transpose", "sharding_indexed", "vlen-utf8", "vlen-bytes", "blosc", "zstd",
          "gzip",
          "crc32c", "numcodecs.zlib", "numcodecs.bz2", "numcodecs.lz4", "numcodecs.delta",
          "numcodecs.fixedscaleoffset", "numcodecs.quantize", "numcodecs.astype",
          "numcodecs.pickle",
          "numcodecs.packbits", "numcodecs.bitround", "numcodecs.lzma", "pickle", "json2",
          "numcodecs.fletcher32", "numcodecs.shuffle", "numcodecs.pcodec", "zfpy"]  # fmt: skip
DATA_TYPES = ["bool", "int8", "uint64", "float16", "float32", "float64", "complex64", "string",
              "r24",
              "variable_length_bytes", "bytes", "structured", "object", "numpy.datetime64",
              "|O", "<f4",
              "|V8", "<M8[ns]", "|S4", "<U3"]  # fmt: skip
DATA_TYPES += [
    {"name": "fixed_length_utf32", "configuration": {"length_bytes": 4}},
    {"name": "fixed_length_utf32", "configuration": {"length_bytes": 2**31 - 4}},
    {"name": "null_terminated_bytes", "configuration": {"length_bytes": 2**40}},
    {"name": "raw_bytes", "configuration": {"length_bytes": -1}},
    {"name": "numpy.datetime64", "configuration": {"unit": "s", "scale_factor": 1}},
    {"name": "numpy.timedelta64", "configuration": {"unit": "zz", "scale_factor": 2**40}},
    {"name": "structured", "configuration": {"fields": [["a", "int8"], ["a", "int8"]]}},
    {"name": "struct", "configuration": {"fields": []}},
]
# Attributes that decoding by CF conventions acts on.
KNOWN = ["units", "calendar", "scale_factor", "add_offset", "_FillValue", "missing_value", "dtype",
         "coordinates", "bounds", "grid_mapping", "_Unsigned", "ancillary_variables",
         "formula_terms",
         "_ARRAY_DIMENSIONS", "compress", "cell_measures"]  # fmt: skip
SAID = ["days since 2000-01-01", "seconds since 1e9", "s", "days since", "years since 0-0-0",
        "x y z",
        "noleap", "timedelta64[ns]", "density", "a: b c: d", "int64", "/etc", "k",
        "component"]  # fmt: skip
FACTS = ["box_size", "redshift", "cosmology", "los", "space", "periodic", "history", "title",
         "authors",
         "cosmofields", "complete", "Conventions", "source", "origin"]  # fmt: skip


def _store(case: Case, files: Tree, draws: Draws) -> None:
    if case.source.endswith(".zip"):
        raw = files[case.source]
        assert isinstance(raw, bytes)
        member = (lambda name, content, draws: _node(content, draws)) if draws.whole(0, 3) else None
        changed = zip_changed(raw, draws, member)
        files[case.source] = bytes_changed(changed, draws) if chance(draws, 10) else changed
        return
    documents = [name for name in sorted(files) if name.rpartition("/")[2] in (
        "zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")]  # fmt: skip
    chunks = [name for name in sorted(files) if name not in documents]
    how = draws.whole(0, 9)
    if how <= 6 and documents:
        # The root's document is the one that counts, where metadata are consolidated.
        roots = [name for name in documents if name.count("/") == 1]
        name = pick(draws, roots if draws.whole(0, 2) else documents)
        content = files[name]
        assert isinstance(content, bytes)
        files[name] = _node(content, draws)
    elif how <= 8 or not documents:
        name = pick(draws, chunks or documents)
        content = files[name]
        assert isinstance(content, bytes)
        what = draws.whole(0, 9)
        if what == 0:
            del files[name]
        elif what == 1:
            files[name] = pickle.dumps([Evil()])
        elif what == 2:
            files[f"{name}/0"] = files.pop(name)
        elif what == 3:
            other = files[pick(draws, chunks or documents)]
            files[name] = other
        elif what == 4:
            files[name] = b""
        elif what == 5:
            files[name] = content + bytes(draws.whole(1, 1000))
        elif what == 6:
            # Behind the header of a file of Icechunk, or none: up to 4 GB that nothing announces.
            files[name] = content[: pick(draws, [0, 39])] + zstd_of_zeros(pick(draws, [9, 2**15]))
        else:
            files[name] = bytes_changed(content, draws)
    else:
        base = case.source.split("/")[0]
        name = pick(draws, documents)
        for i in range(pick(draws, [1, 3, 15])):
            base += f"/{pick(draws, ['g', 'density', str(i), 'é', 'x' * 200, '.hidden'])}"
            files[f"{base}/zarr.json"] = files[name]


def zstd_of_zeros(n_blocks: int) -> bytes:
    """A frame that does not say that it becomes 128 kB a block (RFC 8878, section 3.1.1.2)."""
    frame, block, last = b"\x28\xb5\x2f\xfd\x00\x58", b"\x02\x00\x10\x00", b"\x03\x00\x10\x00"
    return frame + block * (n_blocks - 1) + last


def _node(content: bytes, draws: Draws) -> bytes:
    """A metadata document changed, or any other content."""
    try:
        document = json.loads(content)
        assert isinstance(document, dict)
    except (ValueError, AssertionError):
        return bytes_changed(content, draws)
    how = draws.whole(0, 9)
    if how == 0:
        return bytes_changed(content, draws)
    if how <= 4:
        return json_text(json_changed(document, draws), draws)
    inline = document.get("consolidated_metadata") or document
    nodes = inline.get("metadata") if isinstance(inline, dict) else None
    nodes = nodes if isinstance(nodes, dict) and nodes else {"": document}
    key = pick(draws, sorted(nodes))
    node = nodes[key]
    if not isinstance(node, dict):
        return json_text(document, draws)
    for _ in range(draws.whole(1, 2)):
        _array(node, nodes, key, draws)
    return json_text(document, draws)


def _array(node: dict[str, Any], nodes: dict[str, Any], key: str, draws: Draws) -> None:
    """What the metadata of an array or a group say, one thing of it."""
    how = draws.whole(0, 12)
    old = "chunks" in node or "compressor" in node  # format 2
    attrs = node.get("attributes", node)
    attrs = attrs if isinstance(attrs, dict) else node
    if how <= 2:
        attrs[pick(draws, KNOWN)] = pick(draws, SAID) if draws.whole(0, 1) else weird(draws)
    elif how == 3:
        attrs[pick(draws, FACTS)] = weird(draws)
    elif how == 4:
        configuration: dict[str, Any] = pick(
            draws, [{}, {"endian": "little"}, {"level": 5}, {"order": [0]}, {"dtype": "|O"},
                    {"chunk_shape": [1], "codecs": [], "index_codecs": []},
                    {"cname": "zstd", "clevel": 5, "shuffle": "shuffle", "typesize": 4,
                    "blocksize": 0}]
        )  # fmt: skip
        if chance(draws, 3):
            configuration = {str(pick(draws, TEXT)): weird(draws)}
        name = pick(draws, CODECS)
        codec = {"id": name.removeprefix("numcodecs."), **configuration} if old else {
            "name": name, "configuration": configuration}  # fmt: skip
        if old:
            node[pick(draws, ["compressor", "filters"])] = codec if draws.whole(0, 1) else [codec]
        else:
            codecs = node.get("codecs")
            codecs = codecs if isinstance(codecs, list) else []
            codecs.insert(draws.whole(0, len(codecs)), codec)
            node["codecs"] = codecs
    elif how == 5:
        node["dtype" if old else "data_type"] = pick(draws, DATA_TYPES)
    elif how == 6:
        node["fill_value"] = weird(draws) if draws.whole(0, 1) else pick(
            draws, ["NaN", "Infinity", "-Infinity", "0x7fc00000", "AAAA", 10**30, [1, 2],
            REAL[-1]])  # fmt: skip
    elif how == 7:
        shape = node.get("shape") if isinstance(node.get("shape"), list) else [4]
        side = pick(draws, [*WHOLE[:-6], 4, 12])
        node["shape"] = pick(
            draws, [[side] * len(shape), [side, *shape[1:]], [*shape, side], [], shape[1:]]
        )
    elif how == 8:
        shape = node.get("shape") if isinstance(node.get("shape"), list) else [4]
        sides = [pick(draws, [*WHOLE[:-6], 4]) for _ in shape]
        if old:
            node["chunks"] = sides
        else:
            node["chunk_grid"] = pick(
                draws, [{"name": "regular", "configuration": {"chunk_shape": sides}},
                        {"name": "rectangular", "configuration": {"chunk_shapes": [[1,
                        3]] * len(sides)}},
                        {"name": "regular"}, "regular"]
            )  # fmt: skip
    elif how == 9:
        node["dimension_names"] = pick(
            draws, [None, [], ["x"], ["x", "x", "x"], [None, None, None], ["a/b"] * 3, ["", "", ""],
                    ["halo", "halo"], ["x" * 10_000] * 3, [1, 2, 3]]
        )  # fmt: skip
    elif how == 10:
        node[pick(draws, ["storage_transformers", "must_understand", "extension", "node_type",
                          "zarr_format", "chunk_key_encoding", "order", "dimension_separator"])] = (
            pick(draws, [{"name": "x"}, [], 2, 3, "array", "group", "C", "/", {"name": "v2"},
                         {"name": "default", "configuration": {"separator": ".."}}, None])
        )  # fmt: skip
    elif how == 11 and nodes.get(key) is node:
        new = pick(draws, ["../x", "a/../../b", "/etc", "a//b", "x" * 300, "a\\b", "é", "g/h/i",
        ".zattrs",
                           "a/.zarray", "true", "halos", "c/0", ""])  # fmt: skip
        nodes[new] = node
    else:
        node["attributes"] = nested(pick(draws, [10, 63, 64, 65, 200]), True)


# --- models ---


def _model(case: Case, files: Tree, draws: Draws) -> None:
    card, weights = sorted(files)  # .json, .safetensors
    how = draws.whole(0, 9)
    if how <= 5:
        raw = files[card]
        assert isinstance(raw, bytes)
        document = json.loads(raw)
        if how <= 2:
            _architecture(document, draws)
        else:
            document = json_changed(document, draws)
        files[card] = json_text(document, draws)
    elif how == 6:
        raw = files[card]
        assert isinstance(raw, bytes)
        files[card] = bytes_changed(raw, draws) if draws.whole(0, 1) else text_changed(raw, draws)
    else:
        raw = files[weights]
        assert isinstance(raw, bytes)
        files[weights] = _safetensors(raw, draws)
    if chance(draws, 4) and isinstance(files[card], bytes):
        # A card that does not say which weights it is of is held to none.
        try:
            document = json.loads(files[card])
            document.pop("weights_digest", None)
            files[card] = json.dumps(document).encode()
        except (ValueError, AttributeError, RecursionError):
            pass


def _architecture(card: dict[str, Any], draws: Draws) -> None:
    """Another network than that of the weights, of whatever size."""
    made: Any = card["architecture"]
    how = draws.whole(0, 7)
    if how == 0:
        made["name"] = pick(draws, ["residual", "paper", "Residual", ["residual"], {}, None, 1])
    elif how == 1:
        made["options"]["widths"] = [pick(draws, WHOLE[:-2]) for _ in range(draws.whole(0, 6))]
    elif how == 2:
        made["options"]["n_bins"] = weird(draws)
    elif how == 3:
        made["options"]["dropout"] = weird(draws)
    elif how == 4:
        made["options"][str(pick(draws, ["architecture", "target", "self", "name", *TEXT]))] = (
            weird(draws)
        )
    elif how == 5:
        made["options"]["widths"] = [2] * pick(draws, [1, 3, 10, 40, 1000])
    elif how == 6:
        made["options"]["widths"] = weird(draws)
    else:
        card[pick(draws, ["inputs", "trained_for", "linear_bias", "card_version", "weights_digest",
                          "calibration", "target", "name",
                          "architecture"])] = weird(draws)  # fmt: skip


def _safetensors(raw: bytes, draws: Draws) -> bytes:
    """Another header: names, dtypes, shapes and offsets; or other bytes."""
    size = int.from_bytes(raw[:8], "little")
    header: Any = json.loads(raw[8 : 8 + size])
    how = draws.whole(0, 9)
    if how <= 1:
        return bytes_changed(raw, draws)
    if how == 2:
        return pick(draws, WHOLE[:-6]).to_bytes(16, "little", signed=True)[:8] + raw[8:]
    if how <= 4:
        header = json_changed(header, draws)
    else:
        name = pick(draws, sorted(header))
        entry = header[name]
        what = draws.whole(0, 6)
        if what == 0:
            entry["dtype"] = pick(
                draws, ["F64", "BF16", "I64", "BOOL", "F8_E4M3", "U8", "C64", "O", 1]
            )
        elif what == 1:
            entry["shape"] = [pick(draws, WHOLE[:-2]) for _ in range(draws.whole(0, 6))]
        elif what == 2:
            entry["data_offsets"] = [pick(draws, WHOLE[:-2]), pick(draws, WHOLE[:-2])]
        elif what == 3:
            entry["data_offsets"] = header[pick(draws, sorted(header))]["data_offsets"]
        elif what == 4:
            header[str(pick(draws, TEXT))] = header.pop(name)
        elif what == 5:
            header["__metadata__"] = weird(draws)
        else:
            entry["shape"] = [*entry["shape"], 1]
    text = json_text(header, draws)
    return len(text).to_bytes(8, "little") + text + raw[8 + size :]
