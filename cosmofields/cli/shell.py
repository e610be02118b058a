"""Verbs for the shell itself: completion, versions."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..conventions import require_extra
from ..zoo import TARGETS, zoo
from .shared import Verbs, add_verb, json_option, print_json

SHELLS = ("bash", "zsh", "fish")
_STORES = ("*.zarr", "*.zarr.zip", "*.icechunk")
_BOXES = ("*.h5", "*.hdf5", *_STORES)


def add_verbs(verbs: Verbs, parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Add the parsers of these verbs; ``parser`` makes the one of all verbs."""
    versions = add_verb(
        verbs,
        "versions",
        _versions,
        summary="versions of all that is installed, for an issue",
        about="""
The versions of cosmofields, of Python and of all that it can use: what an issue
should say of the installation.
""",
        examples=("versions", "versions --json"),
        python="cosmofields.show_versions()",
    )
    json_option(versions, "the versions by name, null for what is not installed")

    completion = add_verb(
        verbs,
        "completion",
        lambda args: _completion(args.shell, parser()),
        summary="completion of verbs, options, models and files for your shell",
        about="""
Print the script with which a shell completes verbs, options and their values,
names of models, and files by their kind. It runs nothing of cosmofields at a TAB.
Print it again after an update.
""",
        examples=(
            "completion bash > ~/.local/share/bash-completion/completions/cosmofields",
            "completion zsh > ~/.zfunc/_cosmofields  # fpath+=~/.zfunc before compinit",
            "completion fish > ~/.config/fish/completions/cosmofields.fish",
        ),
    )
    completion.add_argument("shell", choices=SHELLS, help="your shell")


def _versions(args: argparse.Namespace) -> None:
    from ..versions import found_versions, show_versions

    if args.json:
        print_json(found_versions())
    else:
        show_versions()


def _completion(shell: str, parser: argparse.ArgumentParser) -> None:
    shtab = require_extra("shtab", "shell", "Completion")
    from ..readers.formats import FORMATS

    kinds = {
        "model": _completer(shtab, "model", (), words=zoo()),
        "store": _completer(shtab, "store", _STORES),
        "store or model": _completer(shtab, "store_or_model", _STORES, words=zoo()),
        "box": _completer(shtab, "box", _BOXES),
        "catalog": shtab.FILE,  # of any name: Gadget's have no suffix
        "configuration": _completer(shtab, "configuration", ("*.toml",), words=TARGETS),
        "format": _completer(shtab, "format", None, words=FORMATS),
        "directory": shtab.DIRECTORY,
        "file": shtab.FILE,
    }
    for action in _actions(parser):
        kind = getattr(action, "complete", None)
        if kind is not None:
            action.complete = kinds[kind]
    print(shtab.complete(parser, shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[Any]:
    """Arguments of a parser and of its verbs."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for listed in action._choices_actions:
                verb = action.choices[listed.dest]
                verb.description = listed.help  # the line of the list of verbs, beside each
                yield from _actions(verb)


def _completer(
    shtab: Any, name: str, patterns: Sequence[str] | None, *, words: Any = ()
) -> dict[str, Any]:
    """What each shell runs for a value: words, and files of some patterns; None: no files.

    Stores and models are folders, so that folders complete wherever files do.
    """
    function = f"_cosmofields_{name}"
    listed = " ".join(words)
    if patterns is None:
        files = {"bash": "", "zsh": "", "fish": ""}
        preamble: dict[str, str] = {}
    else:
        found = shtab.glob(*patterns) if patterns else shtab.DIRECTORY
        files = {shell: str(found[shell]) for shell in SHELLS}
        files["bash"] += ' "$1"'
        files["fish"] = f"for each in {files['fish']}; printf '%s\\n' $each; end"
        preamble = found.get("preamble", {})
    given = {
        "bash": f'compgen -W "{listed}" -- "$1"',
        "zsh": f"compadd -- {listed}",
        "fish": f"printf '%s\\n' {listed}",
    }
    ends = {"bash": ("() {", "}"), "zsh": ("() {", "}"), "fish": ("", "end")}
    made: dict[str, Any] = {"bash": function, "zsh": function, "fish": f"({function})"}
    made["preamble"] = {}
    for shell, (opens, closes) in ends.items():
        lines = [given[shell]] if listed else []
        lines += [files[shell]] if files[shell] else []
        head = f"function {function}" if shell == "fish" else f"{function}{opens}"
        body = "\n".join([head, *(f"  {line}" for line in lines), closes])
        # Bash calls functions of shtab's own, which it needs beside ours.
        made["preamble"][shell] = "\n".join(filter(None, [preamble.get(shell, "").strip(), body]))
    return made
