"""A case: a tree of files, and the call that opens it.  Cases that found something are kept."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Odd:
    """What a tree may hold beside bytes: a link, a pipe, a file of zeros without blocks."""

    kind: str  # "link", "pipe" or "sparse"
    value: str | int = ""


Tree = dict[str, bytes | Odd]


@dataclass
class Case:
    """Files below a folder, what of them is opened, and how."""

    target: str  # "readers", "stores" or "models"
    kind: str
    files: Tree
    source: str  # below the folder; a pattern of open_catalog as well
    options: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Put the files into an empty folder; names that no file system takes are left out."""
        for name, content in self.files.items():
            path = folder / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, bytes):
                    path.write_bytes(content)
                elif content.kind == "link":
                    path.symlink_to(str(content.value))
                elif content.kind == "pipe":
                    os.mkfifo(path)
                else:
                    with path.open("wb") as file:
                        file.truncate(int(content.value))
            except (OSError, ValueError):
                continue

    def digest(self) -> bytes:
        """Eight bytes that tell one case from another."""
        parts = (f"{name}\0{content!r}\0" for name, content in sorted(self.files.items()))
        text = f"{self.target}\0{self.source}\0{self.options!r}\0{''.join(parts)}"
        return hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest()

    def dump(self, found: dict[str, Any] | None = None) -> str:
        """As JSON of a few kB, with what was found."""
        packed: dict[str, Any] = {}
        for name, content in self.files.items():
            if isinstance(content, bytes):
                packed[name] = base64.b64encode(zlib.compress(content, 9)).decode()
            else:
                packed[name] = {content.kind: content.value}
        keys = ("target", "kind", "source", "options")
        return json.dumps(
            {**{key: getattr(self, key) for key in keys}, "found": found or {}, "files": packed},
            indent=1,
        )


def load(text: str) -> Case:
    """A case that was dumped."""
    known = json.loads(text)
    files: Tree = {}
    for name, content in known["files"].items():
        if isinstance(content, str):
            files[name] = zlib.decompress(base64.b64decode(content))
        else:
            ((kind, value),) = content.items()
            files[name] = Odd(kind, value)
    return Case(known["target"], known["kind"], files, known["source"], known["options"])


def tree_of(folder: Path) -> Tree:
    """Files below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
