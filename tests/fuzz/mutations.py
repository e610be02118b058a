"""What is done to bytes, to text, and to JSON, whatever they are of."""

from __future__ import annotations

import json
import re
import struct
from typing import Any

from .draws import TEXT, WHOLE, Draws, chance, nested, pick, weird

_TOKEN = re.compile(rb"[^\s,;:=\[\]{}()'\"#]+")
_NUMBERS = [b"nan", b"inf", b"-inf", b"1e400", b"-1", b"0", b"1e-400", b"9" * 400, b"0x10", b"1_0"]
_NUMBERS += [b"1e5", b"-0.0", b"--1", b"1.2.3", b"2147483648", b"99999999999999999999", b"1d5"]
_NUMBERS += ["٣".encode(), b"\xff\xfe", b"\0", b"'", b'"', b"x" * 3000, b"True", b"None"]


def bytes_changed(data: bytes, draws: Draws) -> bytes:
    """A few places overwritten, cut out, put in, repeated, or the rest cut off."""
    changed = bytearray(data)
    for _ in range(draws.whole(1, 4)):
        at = draws.whole(0, len(changed))
        how = draws.whole(0, 9)
        if how <= 2:
            new = draws.raw(8)
            changed[at : at + len(new)] = new
        elif how <= 5:  # a number in a header
            code = pick(draws, ["<B", "<H", "<I", "<Q", ">H", ">I", ">Q", "<d", ">d", "<f"])
            value: Any = pick(draws, WHOLE[:-6])
            if code[1] in "df":
                value = pick(draws, [float("nan"), float("inf"), -1.0, 0.0, 1e30, 5e-324])
            else:
                value %= 1 << (8 * struct.calcsize(code))
            new = struct.pack(code, value)
            # Most numbers stand where their size divides the place.
            at -= at % len(new) if draws.whole(0, 1) else 0
            changed[at : at + len(new)] = new
        elif how == 6 and at < len(changed):
            changed[at] ^= 1 << draws.whole(0, 7)
        elif how == 7:
            del changed[at : at + draws.whole(1, 64)]
        elif how == 8:
            piece = changed[at : at + draws.whole(1, 64)]
            changed[at:at] = piece * draws.whole(1, 8)
        elif chance(draws, 4):
            del changed[at:]
    return bytes(changed)


def text_changed(data: bytes, draws: Draws) -> bytes:
    """Words replaced, exchanged or repeated; lines left out, repeated, or without end."""
    for _ in range(draws.whole(1, 3)):
        tokens = list(_TOKEN.finditer(data))
        how = draws.whole(0, 9)
        if how <= 5 and tokens:
            found = tokens[draws.whole(0, len(tokens) - 1)]
            new = (
                pick(draws, _NUMBERS)
                if how <= 3
                else str(pick(draws, TEXT)).encode("utf-8", "replace")
            )
            data = data[: found.start()] + new + data[found.end() :]
        elif how == 6 and len(tokens) > 1:
            one, other = sorted(draws.whole(0, len(tokens) - 1) for _ in range(2))
            a, b = tokens[one], tokens[other]
            if one < other:
                data = (
                    data[: a.start()] + b.group() + data[a.end() : b.start()] + a.group()
                    + data[b.end() :]
                )  # fmt: skip
        else:
            lines = data.split(b"\n")
            at = draws.whole(0, len(lines) - 1)
            what = draws.whole(0, 6)
            if what == 0:
                del lines[at]
            elif what == 1:
                lines[at:at] = [lines[at]] * pick(draws, [1, 2, 20])
            elif what == 2:
                lines[at] += b" " + b"1 " * pick(draws, [1, 100, 40_000])
            elif what == 3:
                lines[at] = lines[at].replace(pick(draws, [b" ", b",", b":"]), draws.raw(3))
            elif what == 4:
                lines[at] = lines[at].replace(b" ", b"\t").replace(b",", b";")
            elif what == 5:
                lines[at] = draws.raw(40)
            else:
                lines[at] = pick(draws, [b"", b"\r", b"#", b"# ", b'"', b"[" * 3000, b"{" * 3000])
            data = b"\n".join(lines)
    return data


def json_changed(document: Any, draws: Draws) -> Any:
    """Nodes replaced, removed, named otherwise, or exchanged."""
    document = json.loads(json.dumps(document))
    for _ in range(draws.whole(1, 3)):
        places = list(_places(document))
        if not places:
            break
        holder, key = places[draws.whole(0, len(places) - 1)]
        if key not in (range(len(holder)) if isinstance(holder, list) else holder):
            continue
        how = draws.whole(0, 9)
        if how <= 4:
            holder[key] = weird(draws)
        elif how == 5:
            del holder[key]
        elif how == 6:
            other, where = places[draws.whole(0, len(places) - 1)]
            if where in (range(len(other)) if isinstance(other, list) else other):
                holder[key] = json.loads(json.dumps(other[where]))
        elif how == 7 and isinstance(holder, dict):
            holder[str(pick(draws, TEXT))] = holder.pop(key)
        elif how == 8 and isinstance(holder[key], int | float):
            number = holder[key]
            holder[key] = pick(
                draws,
                [number + 1, number - 1, -number, float(min(number, 1e300)), str(number), [number],
                 number * 1000],
            )  # fmt: skip
        elif how == 9 and isinstance(holder[key], list):
            holder[key] = holder[key] * pick(draws, [0, 2, 40, 1000])
    return document


def _places(document: Any) -> Any:
    waiting = [document]
    while waiting:
        holder = waiting.pop()
        keys: Any = holder if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            yield holder, key
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])


def json_text(document: Any, draws: Draws) -> bytes:
    """A document as text; at times nested deeper than a parser goes, or not quite JSON."""
    try:
        text = json.dumps(document)
    except (ValueError, RecursionError):
        text = "{}"
    how = draws.whole(0, 40)
    if how == 0:
        depth = pick(draws, [500, 1000, 5000, 100_000])
        deep = (
            "[" * depth + "]" * depth if draws.whole(0, 1) else '{"a":' * depth + "1" + "}" * depth
        )
        text = text[:-1] + (", " if len(text) > 2 else "") + '"deep": ' + deep + "}"
    elif how == 1:
        text = text[:-1] + ', "long": "' + "x" * 10**6 + '"}'
    elif how == 2:
        text = json.dumps(nested(900, True))
    elif how == 3:
        text = text[:-1] + ', "n": ' + "9" * 5000 + "}"
    raw = text.encode("utf-8", "surrogatepass")
    if how in (4, 5):
        raw = bytes_changed(raw, draws)
    elif how == 6:
        raw = raw.decode("utf-8", "replace").encode("utf-16")
    return raw
