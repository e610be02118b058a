"""What may become of a case: it is refused by an error of ours, or it opens and makes sense."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from .cases import Case
from .containers import CANARY

SECONDS, GROWTH = 10.0, 2**30  # of CPU time, of memory
SECRET = 77.125  # every number in the files that lie outside
_LOAD = 2**24  # bytes of a variable that is read as a whole
# Nothing that is read may do these, as sys.addaudithook names them.
_FORBIDDEN = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect",
              "os.mkdir", "os.remove", "os.rename", "shutil.rmtree")  # fmt: skip
_OF_PICKLES = ("posix", "os", "builtins", "subprocess", "sys")  # dask pickles names of ours


class Verdict(NamedTuple):
    """What became of a case."""

    what: str  # "refused", "opened", or what was found
    detail: str = ""
    seconds: float = 0.0
    growth: int = 0

    @property
    def found(self) -> bool:
        """Whether it is none of what may be."""
        return self.what not in ("refused", "opened")


class _Watched:
    """What a case did that an audit hook sees; hooks stay for the life of a process."""

    def __init__(self) -> None:
        self.on, self.seen, self.installed = False, "", False

    def install(self) -> None:
        if not self.installed:
            self.installed = True
            sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on or self.seen:
            return
        if event in _FORBIDDEN or (event == "pickle.find_class" and args[0] in _OF_PICKLES):
            self.seen = f"{event}: {str(args)[:200]}"
        elif event == "open" and isinstance(args[0], str | bytes):
            path = os.fsdecode(args[0])
            if path.startswith("/etc/passwd") or "/outside/" in path:
                self.seen = f"reads {path}"


_WATCHED = _Watched()


def prepare(scratch: Path) -> None:
    """Load what cases need, and put beside them what none may read."""
    import cosmofields.readers  # noqa: F401
    import cosmofields.store  # noqa: F401
    import cosmofields.unet  # noqa: F401

    outside = scratch / "outside"
    outside.mkdir(parents=True, exist_ok=True)
    values = np.full((12, 3), SECRET)
    with h5py.File(outside / "secret.h5", "w") as file:
        file["position"] = values
    values.tofile(outside / "secret.npy")
    _WATCHED.install()


def judge(case: Case, scratch: Path) -> Verdict:
    """Write a case into ``scratch/case``, which is empty, open it, and say what became of it."""
    folder = scratch / "case"
    folder.mkdir(exist_ok=True)
    case.write(folder)
    before = Path.cwd()
    os.chdir(folder)
    _reset_peak()
    rss, started = _memory("VmRSS"), time.process_time()
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as null:
            warnings.simplefilter("ignore")  # libraries warn of what they then refuse
            with contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
                _WATCHED.seen, _WATCHED.on = "", True
                what, detail = _become(case, folder)
    finally:
        _WATCHED.on = False
        os.chdir(before)
    seconds, growth = time.process_time() - started, _memory("VmHWM") - rss
    if (folder / CANARY).exists():
        what, detail = "ran code", "the folder that a pickle makes is there"
    elif _WATCHED.seen:
        what, detail = "ran code" if "reads" not in _WATCHED.seen else "elsewhere", _WATCHED.seen
    elif seconds > SECONDS:
        what, detail = "hang", f"{seconds:.1f} s of CPU time; {what}: {detail}"
    elif growth > GROWTH:
        what, detail = "memory", f"{growth / 2**20:.0f} MB; {what}: {detail}"
    return Verdict(what, detail, seconds, growth)


def _become(case: Case, folder: Path) -> tuple[str, str]:
    from cosmofields.conventions import CosmofieldsError

    calls = {"readers": _read, "stores": _open, "models": _load_model}
    try:
        wrong = calls[case.target](case, folder / case.source)
    except CosmofieldsError as error:
        for cause in _causes(error):
            if isinstance(cause, MemoryError):
                return "memory", f"refused, after it was asked for: {cause!r:.200}"
        return "refused", str(error)[:300]
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"foreign: {_signature(error)}", "".join(traceback.format_exception(error))[-6000:]
    return (f"insane: {wrong}", wrong) if wrong else ("opened", "")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _signature(error: BaseException) -> str:
    """Kind of an error, and the last line of ours that it went through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/cosmofields/" in frame.filename]
    at = ours[-1] if ours else frames[-1]
    where = at.filename.rpartition("/cosmofields/")[2]
    return f"{type(error).__name__} in {where}:{at.name}"


# --- the three calls ---


def _read(case: Case, source: Path) -> str:
    import dask

    import cosmofields as cf

    options = dict(case.options)
    with dask.config.set(scheduler="synchronous"):
        if options.pop("box", False):
            halos, true = cf.open_box(source)
            if true.nbytes < _LOAD:
                true = true.compute()
                if (np.asarray(true["momentum"]) == SECRET).any():
                    return "read what lies outside"
            return _sane(halos)
        catalog = cf.open_catalog(str(source), **options)
        if catalog.nbytes < 64 * _LOAD:
            return _sane(catalog.compute())
    return ""


def _sane(catalog: Any) -> str:
    """What is wrong with a catalogue that opened."""
    sides = np.broadcast_to(np.asarray(catalog.attrs["box_size"], float), 3)
    position = np.asarray(catalog["position"])
    if not (np.isfinite(sides).all() and (sides > 0).all()):
        return f"box_size {sides}"
    # A float32 below L cannot say more than that it rounds to below L.
    if not ((position >= 0) & (position < sides.astype(np.float32))).all():
        return "positions outside the box"
    if position.size and (position == SECRET).all():
        return "read what lies outside"
    for name in ("velocity", "mass"):
        if name in catalog and not np.isfinite(catalog[name]).all():
            return f"{name} is not finite"
    if "mass" in catalog and not (np.asarray(catalog["mass"]) > 0).all():
        return "masses of zero or less"
    if not np.isfinite(catalog.attrs["redshift"]):
        return "redshift is not finite"
    return ""


def _open(case: Case, source: Path) -> str:
    import dask
    import xarray as xr

    import cosmofields as cf
    from cosmofields.conventions import CosmofieldsError
    from cosmofields.store import describe

    refused: CosmofieldsError | None = None
    # Of three cases one is verified as well, and one described: each takes longer than to open it.
    chosen = ((cf.verify,), (describe,), ())[case.digest()[0] % 3]
    for call in (cf.verify, describe) if case.options.get("thorough") else chosen:
        try:
            with dask.config.set(scheduler="synchronous"):
                call(source)
        except CosmofieldsError as error:
            refused = error
    with dask.config.set(scheduler="synchronous"):
        opened = cf.open_store(source)
        tree = opened if isinstance(opened, xr.DataTree) else xr.DataTree(opened)
        for node in tree.subtree:
            for variable in node.to_dataset(inherit=False).variables.values():
                if variable.nbytes < _LOAD:
                    np.asarray(variable.compute().values)
        repr(opened)
    if refused is not None:
        raise refused
    return ""


def _load_model(case: Case, source: Path) -> str:
    from cosmofields.conventions import CosmofieldsError
    from cosmofields.unet import load_cards, load_model

    refused: CosmofieldsError | None = None
    try:
        load_cards(source)
    except CosmofieldsError as error:
        refused = error
    model, card = load_model(case.options["model"], source)
    if refused is not None:
        raise refused
    if sum(p.numel() for p in model.parameters()) > 10**7:
        return "a model of more numbers than its file"
    return "" if card["weights_digest"] else "a card without digest"


# --- this process ---


def _memory(key: str) -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return 0


def _reset_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
