"""One catalogue, written in the layout of every format that `open_catalog` reads.

Each writer undoes by its own arithmetic what the reader has to do, from the documentation of the
format; where a library exists that writes it, that is used.  Returns what to open, and what to say.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

SIDE, Z, A, H = 300.0, 0.5, 1 / 1.5, 0.6774
COSMOLOGY = {"Omega_m": 0.3089, "Omega_b": 0.0486, "h": H}
N = 3000
KPC, MPC = 3.085678e21, 3.085678e24
Table = dict[str, Any]
FACTS = {"box_size": SIDE, "redshift": Z, "cosmology": COSMOLOGY}


def make_table(n: int = N, seed: int = 1) -> Table:
    """Columns in the units of a catalogue, float64, in halos' order of mass."""
    rng = np.random.default_rng(seed)
    return {
        "position": rng.uniform(0, SIDE, (n, 3)),
        "velocity": rng.normal(0, 250, (n, 3)),
        "mass": np.sort(2e12 * (1 + rng.pareto(1.5, n)).clip(max=500))[::-1],
    }


def rows_of(table: Table, low: int, high: int) -> Table:
    return {name: values[low:high] for name, values in table.items()}


def pieces(table: Table, n_files: int) -> list[Table]:
    edges = np.linspace(0, len(table["mass"]), n_files + 1).astype(int)
    return [rows_of(table, a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]


# --- Gadget's kin ---


def gadget4(folder: Path, table: Table) -> tuple[Any, dict[str, Any]]:
    """Snapshot in kpc/h, three files, one of them without particles; units in `Parameters`."""
    total = len(table["mass"])
    parts = [*pieces(table, 2), rows_of(table, 0, 0)]
    for i, part in enumerate(parts):
        with h5py.File(folder / f"snapshot_004.{i}.hdf5", "w") as file:
            n = len(part["mass"])
            file.create_group("Header").attrs.update(
                NumPart_ThisFile=np.array([0, n], np.uint64), BoxSize=SIDE * 1e3, Redshift=Z,
                NumPart_Total=np.array([0, total], np.uint64), MassTable=np.array([0.0, 0.0]),
                NumFilesPerSnapshot=np.int32(3), Time=A,
            )  # fmt: skip
            file.create_group("Parameters").attrs.update(
                Omega0=0.3089, OmegaBaryon=0.0486, HubbleParam=H, UnitLength_in_cm=KPC,
                UnitMass_in_g=1.989e43, UnitVelocity_in_cm_per_s=1e5, ComovingIntegrationOn=1,
            )  # fmt: skip
            if n:
                group = file.create_group("PartType1")
                group["Coordinates"] = part["position"] * 1e3
                group["Velocities"] = part["velocity"] / np.sqrt(A)
                group["Masses"] = part["mass"] / 1e10
                group["ParticleIDs"] = np.arange(n)
    return str(folder / "snapshot_004.*.hdf5"), {}


def gadget2(folder: Path, table: Table) -> tuple[Any, dict[str, Any]]:
    """Snapshot as Quijote has it: kpc/h that nothing declares, one mass for all particles."""
    n = len(table["mass"])
    each = 27.75 * 0.3089 * SIDE**3 / n  # 1e10 Msun/h
    with h5py.File(folder / "snap_003.hdf5", "w") as file:
        file.create_group("Header").attrs.update(
            NumPart_ThisFile=np.array([0, n, 0, 0, 0, 0], np.int32), BoxSize=SIDE * 1e3,
            NumPart_Total=np.array([0, n, 0, 0, 0, 0], np.uint32), Redshift=Z, Time=A,
            NumPart_Total_HighWord=np.zeros(6, np.uint32), NumFilesPerSnapshot=np.int32(1),
            MassTable=np.array([0, each, 0, 0, 0, 0]), Omega0=0.3089, HubbleParam=H,
        )  # fmt: skip
        group = file.create_group("PartType1")
        group["Coordinates"] = (table["position"] * 1e3).astype(np.float32)
        group["Velocities"] = (table["velocity"] / np.sqrt(A)).astype(np.float32)
        file["PartType2/Coordinates"] = np.ones((5, 3), np.float32)
    return folder / "snap_003.hdf5", {}


def record(order: str, name: str, data: bytes, version: int) -> bytes:
    """A block of a binary snapshot, between its lengths."""
    size = struct.pack(f"{order}i", len(data))
    label = struct.pack(f"{order}i", 8)
    begin = label + name.ljust(4).encode() + struct.pack(f"{order}i", len(data) + 8) + label
    return (begin if version == 2 else b"") + size + data + size


def header_256(order: str, here: list[int], total: list[int], masses: list[float], side: float,
               files: int) -> bytes:  # fmt: skip
    """The header of a binary snapshot, field by field of Gadget-2's user guide."""
    raw = struct.pack(f"{order}6i", *here) + struct.pack(f"{order}6d", *masses)
    raw += struct.pack(f"{order}2d", A, Z) + struct.pack(f"{order}2i", 0, 0)
    raw += struct.pack(f"{order}6I", *total) + struct.pack(f"{order}2i", 0, files)
    raw += struct.pack(f"{order}4d", side, 0.3089, 0.6911, H) + bytes(8)
    return (raw + struct.pack(f"{order}6I", *[0] * 6)).ljust(256, b"\0")


def gadget_format1(folder: Path, table: Table) -> tuple[Any, dict[str, Any]]:
    """Two files in kpc/h, big-endian, one mass for all particles of dark matter; gas before it."""
    n = len(table["mass"])
    each = 27.75 * 0.3089 * SIDE**3 / n  # 1e10 Msun/h
    masses = [1e-3, each, 0, 0, 0, 0]
    for i, part in enumerate(pieces(table, 2)):
        here = [5, len(part["mass"]), 0, 0, 0, 0]
        gas = np.full((5, 3), 7.0)
        text = record(">", "", header_256(">", here, [10, n, 0, 0, 0, 0], masses, SIDE * 1e3, 2), 1)
        for values in (np.concatenate([gas, part["position"] * 1e3]),
                       np.concatenate([gas, part["velocity"] / np.sqrt(A)])):  # fmt: skip
            text += record(">", "", values.astype(">f4").tobytes(), 1)
        text += record(">", "", np.arange(5 + here[1]).astype(">i8").tobytes(), 1)
        text += record(">", "", np.zeros(5, ">f4").tobytes(), 1)  # of the gas, its inner energy
        (folder / f"snap_003.{i}").write_bytes(text)
    return folder, {}


def gadget_format2(folder: Path, table: Table) -> tuple[Any, dict[str, Any]]:
    """Double precision, stars with a mass each behind dark matter without, other blocks between."""
    n = len(table["mass"])
    here = [0, 3, 0, 0, n, 0]
    dark = np.full((3, 3), 7.0)
    text = record("<", "HEAD", header_256("<", here, here, [0, 1e-5, 0, 0, 0, 0], SIDE * 1e3, 0), 2)
    text += record("<", "ID", np.arange(3 + n).astype("<u4").tobytes(), 2)
    text += record("<", "MASS", (table["mass"] / 1e10).astype("<f8").tobytes(), 2)
    for name, values in (("VEL", table["velocity"] / np.sqrt(A)), ("POS", table["position"] * 1e3)):
        text += record("<", name, np.concatenate([dark, values]).astype("<f8").tobytes(), 2)
    (folder / "snap_004").write_bytes(text)
    return folder / "snap_004", {"group": "PartType4"}


def arepo(folder: Path, table: Table) -> tuple[Any, dict[str, Any]]:
    """Snapshot as TNG has it, units in the header; stars, whose masses differ."""
    n = len(table["mass"])
    with h5py.File(folder / "snap_067.0.hdf5", "w") as file:
        counts = np.array([0, 2, 0, 0, n, 0], np.int32)
        file.create_group("Header").attrs.update(
            NumPart_ThisFile=counts, NumPart_Total=counts, NumFilesPerSnapshot=1,
            BoxSize=SIDE * 1e3, Redshift=Z, Time=A, MassTable=np.array([0, 5e-4, 0, 0, 0, 0]),
            Omega0=0.3089, OmegaBaryon=0.0486, HubbleParam=H, UnitLength_in_cm=3.085678e21,
            UnitMass_in_g=1.989e43, UnitVelocity_in_cm_per_s=1e5,
        )  # fmt: skip
        file["PartType4/Coordinates"] = table["position"] * 1e3
        file["PartType4/Velocities"] = table["velocity"] / np.sqrt(A)
        file["PartType4/Masses"] = table["mass"] / 1e10
        file["PartType1/Coordinates"] = np.full((2, 3), SIDE * 500)
        file["PartType1/Velocities"] = np.zeros((2, 3))
    return folder / "snap_067.0.hdf5", {"group": "PartType4"}


def swift(folder: Path, table: Table) -> tuple[Any, dict[str, Any]]:
    """Snapshot of SWIFT: Mpc, km/s and 1e10 Msun, without h, attributes as arrays of one."""
    n = len(table["mass"])
    one = {"Unit length in cgs (U_L)": 3.08567758e24, "Unit mass in cgs (U_M)": 1.98841e43}
    one["Unit time in cgs (U_t)"] = 3.08567758e19
    with h5py.File(folder / "snap_0003.hdf5", "w") as file:
        counts = np.array([0, n, 0, 0, 0, 0, 0], np.uint32)
        file.create_group("Header").attrs.update(
            {"BoxSize": np.full(3, SIDE / H), "NumPart_ThisFile": counts, "NumPart_Total": counts,
             "NumPart_Total_HighWord": np.zeros(7, np.uint32), "MassTable": np.zeros(7),
             "NumFilesPerSnapshot": np.array([1]), "Redshift": np.array([Z]), "Code": b"SWIFT",
             "Scale-factor": np.array([A])}
        )  # fmt: skip
        file.create_group("Units").attrs.update({k: np.array([v]) for k, v in one.items()})
        said = {"Omega_m": 0.3089, "Omega_b": 0.0486, "h": H, "Redshift": Z}
        file.create_group("Cosmology").attrs.update({k: np.array([v]) for k, v in said.items()})
        columns = {
            "Coordinates": (table["position"] / H, 1.0),
            "Velocities": (table["velocity"], 0.0),
            "Masses": (table["mass"] / H / 1e10 * (1.989 / 1.98841), 0.0),
        }
        for name, (values, power) in columns.items():
            item = file.create_dataset(f"PartType1/{name}", data=values)
            item.attrs["a-scale exponent"] = np.array([power])
            for how, factor in (("CGS (not", 7e5), ("physical CGS (", 7e5 * A**power)):
                words = f"Conversion factor to {how} including cosmological corrections)"
                item.attrs[words.replace("( ", "(")] = np.array([factor])
            item.attrs["h-scale exponent"] = np.array([0.0])
    return folder / "snap_0003.hdf5", {}


def subfind(folder: Path, table: Table) -> tuple[Any, dict[str, Any]]:
    """Groups of TNG in two files and one without groups: kpc/h, velocities times a."""
    total = len(table["mass"])
    for i, part in enumerate([*pieces(table, 2), rows_of(table, 0, 0)]):
        with h5py.File(folder / f"fof_subhalo_tab_067.{i}.hdf5", "w") as file:
            n = len(part["mass"])
            file.create_group("Header").attrs.update(
                Ngroups_ThisFile=np.int32(n), Ngroups_Total=np.int32(total), NumFiles=np.int32(3),
                Nsubgroups_ThisFile=np.int32(n), Nsubgroups_Total=np.int32(total), Redshift=Z,
                Time=A, BoxSize=SIDE * 1e3, Omega0=0.3089, HubbleParam=H, OmegaLambda=0.6911,
            )  # fmt: skip
            group, sub = file.create_group("Group"), file.create_group("Subhalo")
            if n:
                group["GroupPos"] = (part["position"] * 1e3).astype(np.float32)
                group["GroupVel"] = part["velocity"] * A
                group["GroupMass"] = part["mass"] / 1e10
                group["Group_M_Crit200"] = part["mass"] / 1e10 * 0.75
                sub["SubhaloPos"] = (part["position"] * 1e3).astype(np.float32)
                sub["SubhaloVel"] = part["velocity"]
                sub["SubhaloMass"] = part["mass"] / 2e10
    return folder, {}


def gadget4_groups(folder: Path, table: Table) -> tuple[Any, dict[str, Any]]:
    """Groups of Gadget-4 in Mpc/h, with integers of 6 bytes, which numpy has not."""
    n = len(table["mass"])
    path = folder / "fof_subhalo_tab_010.hdf5"
    with h5py.File(path, "w") as file:
        file.create_group("Header").attrs.update(
            Ngroups_ThisFile=np.uint64(n), Ngroups_Total=np.uint64(n), NumFiles=np.int32(1),
            Nsubhalos_ThisFile=np.uint64(0), Redshift=Z, Time=A, BoxSize=SIDE,
        )  # fmt: skip
        file.create_group("Parameters").attrs.update(
            Omega0=0.3089, OmegaBaryon=0.0486, HubbleParam=H, UnitLength_in_cm=MPC,
            UnitMass_in_g=1.989e43,
        )  # fmt: skip
        file["Group/GroupPos"] = table["position"].astype(np.float32)
        file["Group/GroupVel"] = table["velocity"] * A
        file["Group/GroupMass"] = table["mass"] / 1e10
        six = h5py.h5t.STD_U64LE.copy()
        six.set_size(6)
        space = h5py.h5s.create_simple((n,))
        h5py.h5d.create(file["Group"].id, b"IDMostbound", six, space)
    return path, {}


def pysco(folder: Path, table: Table) -> tuple[Any, dict[str, Any]]:
    """PySCo: units of the box, and supercomoving velocities."""
    hubble = 100 * H / 3.0856775814913674e19  # 1/s
    unit_l, unit_t = A * SIDE * 100 / hubble, A**2 / hubble  # km, s
    path = folder / "particles_newton_ncoarse8_00003.h5"
    with h5py.File(path, "w") as file:
        file["position"] = (table["position"] / SIDE).astype(np.float32)
        file["velocity"] = (table["velocity"] / (unit_l / unit_t)).astype(np.float32)
        file.attrs.update(boxlen=SIDE, aexp=A, H0=100 * H, Om_m=0.3089)
        file.attrs.update(unit_l=unit_l, unit_t=unit_t, npart=len(table["mass"]), theory="newton")
    return path, {}


# --- halos in containers of their own ---


def rockstar(folder: Path, table: Table) -> tuple[Any, dict[str, Any]]:
    """An out_4.list, with the first columns of the code and its head."""
    path = folder / "out_4.list"
    head = [
        "#ID DescID Mvir Vmax Vrms Rvir Rs Np X Y Z VX VY VZ M200b",
        f"#a = {A:.6f}",
        "#Om = 0.308900; Ol = 0.691100; h = 0.677400",
        "#FOF linking length: 0.280000",
        "#Unbound Threshold: 0.500000; FOF Refinement Threshold: 0.700000",
        "#Particle mass: 6.56561e+11 Msun/h",
        f"#Box size: {SIDE:.6f} Mpc/h",
        "#Force resolution assumed: 0.05 Mpc/h",
        "#Units: Masses in Msun / h",
        "#Units: Positions in Mpc / h (comoving)",
        "#Units: Velocities in km / s (physical, peculiar)",
        "#Units: Halo Distances, Lengths, and Radii in kpc / h (comoving)",
        "#Rockstar Version: 0.99.9-RC3+",
    ]
    rows = [
        f"{i} -1 {m:.9e} 500 400 900 90 1000 " + " ".join(f"{x:.9f}" for x in (*p, *v))
        + f" {1.1 * m:.6e}"
        for i, (p, v, m) in enumerate(zip(*table.values(), strict=True))
    ]  # fmt: skip
    path.write_text("\n".join([*head, *rows]) + "\n")
    return path, {}


def hlist(folder: Path, table: Table) -> tuple[Any, dict[str, Any]]:
    """A hlist of Consistent Trees: numbered columns, the scale factor in one of them."""
    path = folder / f"hlist_{A:.5f}.list"
    names = ["scale", "id", "desc_scale", "desc_id", "num_prog", "pid", "mvir", "rvir"]
    names += ["x", "y", "z", "vx", "vy", "vz"]
    head = [
        "#" + " ".join(f"{name}({i})" for i, name in enumerate(names)),
        "#Omega_M = 0.308900; Omega_L = 0.691100; h0 = 0.677400",
        f"#Full box size = {SIDE:.6f} Mpc/h",
        "#Consistent Trees Version 1.0",
    ]
    rows = [
        f"{A:.9f} {i} 1.0 7 1 -1 {m:.9e} 900 " + " ".join(f"{x:.9f}" for x in (*p, *v))
        for i, (p, v, m) in enumerate(zip(*table.values(), strict=True))
    ]
    path.write_text("\n".join([*head, *rows]) + "\n")
    return path, {}


def group_tab(folder: Path, table: Table) -> tuple[Any, dict[str, Any]]:
    """Quijote's groups_003 in two files, beside the group_ids of the same."""
    total = len(table["mass"])
    for i, part in enumerate(pieces(table, 2)):
        n = len(part["mass"])
        head = struct.pack("<iiiQi", n, total, 5 * n, 5 * total, 2)
        arrays = [
            np.full(n, 50, "<i4"), np.arange(n, dtype="<i4"), (part["mass"] / 1e10).astype("<f4"),
            (part["position"] * 1e3).astype("<f4"), (part["velocity"] * A).astype("<f4"),
            np.zeros((n, 6), "<i4"), np.zeros((n, 6), "<f4"),
        ]  # fmt: skip
        data = head + b"".join(array.tobytes() for array in arrays)
        (folder / f"group_tab_003.{i}").write_bytes(data)
        ids = struct.pack("<iiiQii", n, total, 5 * n, 5 * total, 2, 0)
        (folder / f"group_ids_003.{i}").write_bytes(ids + np.arange(5 * n, dtype="<u4").tobytes())
    return folder, dict(FACTS)


def compaso(folder: Path, table: Table) -> tuple[Any, dict[str, Any]]:
    """halo_info of AbacusSummit in two files, by asdf and the compressor of abacusutils."""
    import asdf
    from abacusnbody.data import asdf as _  # noqa: F401 registers blsc

    particle = 1e10
    for i, part in enumerate(pieces(table, 2)):
        header = {
            "BoxSize": SIDE, "BoxSizeHMpc": SIDE, "hMpc": 1, "Redshift": Z, "H0": 100 * H,
            "Omega_M": 0.3089, "ParticleMassHMsun": particle, "VelZSpace_to_kms": 31234.5,
            "SimName": "Test",
        }  # fmt: skip
        centred = part["position"] - SIDE / 2  # in [-L/2, L/2)
        data = {
            "N": np.rint(part["mass"] / particle).astype(np.uint32),
            "x_L2com": (centred / SIDE).astype(np.float32),
            "v_L2com": (part["velocity"] / 31234.5).astype(np.float32),
            "x_com": np.zeros((len(centred), 3), np.float32),
            "v_com": np.zeros((len(centred), 3), np.float32),
        }
        with asdf.AsdfFile({"header": header, "data": data}) as file:
            # Small pieces, so that a window lies across some.
            file.write_to(
                folder / f"halo_info_{i:03d}.asdf", all_array_compression="blsc",
                compression_kwargs={"compression_block_size": 4096, "typesize": 4},
            )  # fmt: skip
    (folder / "checksums.crc32").write_text("1 2 halo_info_000.asdf\n")
    return folder, {}


def block(folder: Path, values: Any, n_files: int = 1, attrs: dict[str, Any] | None = None) -> None:
    """A block of a bigfile, as the library writes it."""
    folder.mkdir(parents=True)
    if values is not None:
        values = np.asarray(values)
        width = values.shape[1] if values.ndim > 1 else 1
        text = f"DTYPE: {values.dtype.str}\nNMEMB: {width}\nNFILE: {n_files}\n"
        for i, piece in enumerate(np.array_split(values, n_files)):
            (folder / f"{i:06X}").write_bytes(piece.tobytes())
            text += f"{i:06X}: {len(piece)} : {i} : {i}\n"
        (folder / "header").write_text(text)
    else:
        (folder / "header").write_text("DTYPE: <i8\nNMEMB: 0\nNFILE: 0\n")
    lines = []
    for name, value in (attrs or {}).items():
        if isinstance(value, str):
            lines.append(f"{name} <a1 {len(value)} {value.encode().hex().upper()} #HUMANE [ ]")
        else:
            array = np.atleast_1d(value)
            raw = array.tobytes().hex().upper()
            lines.append(f"{name} {array.dtype.str} {array.size} {raw} #HUMANE [ {value} ]")
    (folder / "attr-v2").write_text("".join(line + "\n" for line in lines))


def fastpm(folder: Path, table: Table) -> tuple[Any, dict[str, Any]]:
    """Particles and halos of FastPM; halos are counted in particles."""
    root = folder / "fastpm_0.6667"
    particle = 1.0  # 1e10 Msun/h
    header = {
        "BoxSize": SIDE, "ScalingFactor": A, "OmegaM": 0.3089, "HubbleParam": H, "Omega0": 0.26,
        "UnitLength_in_cm": 3.085678e24, "UnitMass_in_g": 1.989e43, "UsePeculiarVelocity": 1,
        "LibFastPMVersion": "x",
    }  # fmt: skip
    block(root / "Header", None, attrs=header)
    block(root / "1" / "Position", table["position"][:7].astype("f4"))
    block(root / "1" / "Velocity", table["velocity"][:7].astype("f4"))
    block(root / "LL-0.200" / "Position", table["position"].astype("f4"), 3)
    block(root / "LL-0.200" / "Velocity", table["velocity"].astype("f4"), 2)
    block(root / "LL-0.200" / "Length", np.rint(table["mass"] / 1e10).astype("i4"))
    block(root / "LL-0.200" / ".x", None)
    (root / "LL-0.200" / "header").write_text("DTYPE: <i8\nNMEMB: 0\nNFILE: 0\n")
    raw = np.array([particle]).tobytes().hex().upper()
    (root / "LL-0.200" / "attr-v2").write_text(f"M0 <f8 1 {raw} #HUMANE [ 1 ]\n")
    return root, {"group": "LL-0.200"}


def nbodykit(folder: Path, table: Table) -> tuple[Any, dict[str, Any]]:
    """A catalogue that nbodykit saved: what its user put into `attrs`, in km/s and Mpc/h."""
    root = folder / "cat.bigfile"
    attrs = {"BoxSize": np.full(3, SIDE), "redshift": Z, "h": H, "Om0": 0.3089}
    block(root / "Header", None, attrs=attrs | {"meta": 'json://{"a": [1, 2]}'})
    for name, values in table.items():
        block(root / name.title(), values)
    return root, {}


# --- tables ---


def flat(table: Table) -> dict[str, Any]:
    names = {"position": ("x", "y", "z"), "velocity": ("vx", "vy", "vz")}
    columns = {
        name: table[column][:, i] for column, three in names.items() for i, name in enumerate(three)
    }
    return columns | {"mass": table["mass"]}


def csv(folder: Path, table: Table) -> tuple[Any, dict[str, Any]]:
    import pandas as pd

    pd.DataFrame(flat(table)).to_csv(folder / "halos.csv", index=False)
    return folder / "halos.csv", dict(FACTS)


def csv_packed(folder: Path, table: Table) -> tuple[Any, dict[str, Any]]:
    path, options = csv(folder, table)
    (folder / "halos.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return folder / "halos.csv.gz", options


def savetxt(folder: Path, table: Table) -> tuple[Any, dict[str, Any]]:
    """What numpy.savetxt writes, with names of another tool and other units."""
    columns = [
        *(flat(table)[k] * 1e3 for k in "xyz"),
        *(flat(table)[k] for k in ("vx", "vy", "vz")),
    ]
    columns.append(np.log10(table["mass"]))
    head = "a catalogue of mine\nPX PY PZ VELX VELY VELZ LOGM"
    np.savetxt(folder / "halos.txt", np.stack(columns, axis=1), header=head)
    return folder / "halos.txt", {
        "position": ("PX", "PY", "PZ"), "velocity": ("VELX", "VELY", "VELZ"), "mass": "LOGM",
        "units": {"position": "kpc/h", "mass": "log10 Msun/h"}, **FACTS,
    }  # fmt: skip


def fits(folder: Path, table: Table) -> tuple[Any, dict[str, Any]]:
    from astropy.table import Table as AstropyTable

    made = AstropyTable({"POS": table["position"], "VEL": table["velocity"], "MASS": table["mass"]})
    made.meta.update(BOXSIZE=SIDE, REDSHIFT=Z)
    made.write(folder / "halos.fits")
    return folder / "halos.fits", {"cosmology": COSMOLOGY}


def parquet(folder: Path, table: Table) -> tuple[Any, dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {k: pa.array(v) for k, v in flat(table).items() if len(k) < 3 or k == "mass"}
    data = pa.table(columns).replace_schema_metadata({"box_size": "300.0", "redshift": "0.5"})
    pq.write_table(data, folder / "halos.parquet", row_group_size=700)
    return folder / "halos.parquet", {"cosmology": COSMOLOGY}


def npz(folder: Path, table: Table) -> tuple[Any, dict[str, Any]]:
    """One array stored column by column, as a transposed one is; the box beside it."""
    np.savez(folder / "halos.npz", pos=np.asfortranarray(table["position"]), vel=table["velocity"],
             mass=table["mass"], box_size=SIDE, redshift=Z)  # fmt: skip
    return folder / "halos.npz", {"cosmology": COSMOLOGY}


def npz_packed(folder: Path, table: Table) -> tuple[Any, dict[str, Any]]:
    np.savez_compressed(folder / "halos.npz", **flat(table), notes=np.array(["a", None], object))
    return folder / "halos.npz", dict(FACTS)


def halotools(folder: Path, table: Table) -> tuple[Any, dict[str, Any]]:
    """The compound dataset of halotools."""
    names = {"x": "halo_x", "y": "halo_y", "z": "halo_z", "vx": "halo_vx", "vy": "halo_vy",
             "vz": "halo_vz", "mass": "halo_mvir"}  # fmt: skip
    data = np.rec.fromarrays([*flat(table).values()], names=[names[key] for key in flat(table)])
    with h5py.File(folder / "halos.hdf5", "w") as file:
        file.create_dataset("data", data=data, chunks=(min(500, len(data)),))
        file.attrs.update(redshift=Z, Lbox=SIDE)
    return folder / "halos.hdf5", {"box_size": SIDE, "cosmology": COSMOLOGY}


Writer = Callable[[Path, Table], tuple[Any, dict[str, Any]]]
# Format that the contents must be recognised as, and the writers of it.
WRITERS: dict[str, tuple[str, Writer]] = {
    "gadget4": ("gadget", gadget4),
    "gadget2": ("gadget", gadget2),
    "arepo": ("gadget", arepo),
    "gadget-format1": ("gadget_binary", gadget_format1),
    "gadget-format2": ("gadget_binary", gadget_format2),
    "swift": ("swift", swift),
    "subfind": ("subfind", subfind),
    "gadget4-groups": ("subfind", gadget4_groups),
    "pysco": ("pysco", pysco),
    "rockstar": ("rockstar", rockstar),
    "hlist": ("rockstar", hlist),
    "group_tab": ("group_tab", group_tab),
    "compaso": ("compaso", compaso),
    "fastpm": ("bigfile", fastpm),
    "nbodykit": ("bigfile", nbodykit),
    "csv": ("csv", csv),
    "csv-packed": ("csv", csv_packed),
    "savetxt": ("csv", savetxt),
    "fits": ("fits", fits),
    "parquet": ("parquet", parquet),
    "npz": ("npz", npz),
    "npz-packed": ("npz", npz_packed),
    "halotools": ("hdf5", halotools),
}
