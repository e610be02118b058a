"""The page: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import gzip
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from io import BytesIO
from typing import Any

from ..conventions import require_extra
from .tables import Table

# Rows of a table that the page shows; its CSV, inside the page too, holds all.
ROWS = 100
_PACK = 50_000  # bytes of CSV from which it is compressed
_LARGEST = 600_000  # bytes, compressed, that the page still holds: the slice of a large box is more
_WIDE = 600  # CSS pixels
_SCALE = 0.65  # CSS pixels for each of a PNG: text as large as the page's, sharp on a dense screen
_INDEX = re.compile(r"(?<!\w)(C|P|L|T|V|v|ξ|σ)_(r|ℓ|p|t|pred|true|×|los|all|overlap|boxes)(?![\w])")


@dataclass(frozen=True)
class Picture:
    """A drawn figure as the page shows it, with the numbers behind it."""

    name: str
    title: str
    caption: str
    paper: str
    alt: str
    png: bytes
    table: Table

    @property
    def src(self) -> str:
        """The image as a data URI, in 256 colours: figures have few, and the page is one file."""
        image = require_extra("PIL.Image", "plot", "A report")
        packed = BytesIO()
        picture = image.open(BytesIO(self.png)).convert("RGB")
        picture.quantize(256, dither=image.Dither.NONE).save(packed, "png", optimize=True)
        return _uri("image/png", packed.getvalue())

    @property
    def width(self) -> int:
        """Of the picture on the page, in CSS pixels."""
        return round(_SCALE * int.from_bytes(self.png[16:20], "big"))

    @property
    def wide(self) -> bool:
        """Whether several panels stand side by side, which a phone cannot show at once."""
        return self.width > _WIDE

    @property
    def height(self) -> int:
        """Of the picture on the page, in CSS pixels."""
        return round(_SCALE * int.from_bytes(self.png[20:24], "big"))


@dataclass
class Section:
    """A part of the page."""

    anchor: str
    title: str
    tables: list[Table] = field(default_factory=list)
    figures: list[Picture] = field(default_factory=list)


@dataclass(frozen=True)
class Download:
    """A table as a link; without one it lies beside the page alone."""

    file: str
    title: str
    href: str
    size: str


def render(sections: Sequence[Section], **context: Any) -> str:
    """HTML of the page.

    Parameters
    ----------
    sections : sequence of Section
    **context
        What the head and the foot of the template show: ``title``, ``subtitle``, ``created``,
        ``version``, ``verdict``, ``warnings``, ``headline``, ``missing``, ``definitions``,
        ``facts``, ``histories``.  All of it is text, and escaped.
    """
    jinja2 = require_extra("jinja2", "plot", "A report")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    markupsafe = require_extra("markupsafe", "plot", "A report")

    def indices(text: str) -> Any:
        """Escaped text in which C_r and its like have their index below."""
        return markupsafe.Markup(_INDEX.sub(r"\1<sub>\2</sub>", str(markupsafe.escape(text))))

    environment.filters["indices"] = indices
    template = environment.from_string(
        (files(__package__) / "template.html").read_text(encoding="utf-8")
    )
    shown = [section for section in sections if section.tables or section.figures]
    html: str = template.render(sections=shown, files=_downloads(shown), limit=ROWS, **context)
    return html


def _downloads(sections: Sequence[Section]) -> Mapping[str, Download]:
    tables = [
        table
        for section in sections
        for table in (*section.tables, *(figure.table for figure in section.figures))
    ]
    return {table.name: _download(table) for table in tables}


def _download(table: Table) -> Download:
    raw = table.csv().encode()
    if len(raw) < _PACK:
        return Download(f"{table.name}.csv", table.title, _uri("text/csv", raw), _size(len(raw)))
    # No time of writing inside: the same numbers give the same page.
    packed = gzip.compress(raw, 9, mtime=0)
    if len(packed) > _LARGEST:
        return Download(f"{table.name}.csv", table.title, "", _size(len(raw)))
    href = _uri("application/gzip", packed)
    return Download(f"{table.name}.csv.gz", table.title, href, _size(len(packed)))


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _size(n: int) -> str:
    return f"{max(round(n / 1000), 1)} kB"
