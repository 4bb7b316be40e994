"""Errors of the package in the words of the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Options that are not named like the argument of the package.
_OPTIONS = {
    "request": "--synapses",
    "on_bad_lines": "--count-bad-lines",
    "auth_token": "--token-file",
    "server_address": "--server",
    "url": "--archive-url",
}
# Calls of the package, and what does the same on the command line.
_CALLS = {
    r"(?:Release\.)?download_synapses\([^)]*\)": "microns-xr download --pre ... --post ...",
    r"mx\.Release\((\d+), source='cave'\), or source='archive'": "microns-xr download",
    r"(?:mx\.)?Release\((\d+), datastack='([^']*)'[^)]*\)": r"--version \1 --datastack \2",
    r"(?:mx\.)?Release\((\d+), \.\.\.\)": r"--version \1",
    r"read with source='path/of/the/folder'": "read by microns-xr build FOLDER",
    r"with source='path/of/the/folder'": "for microns-xr build FOLDER",
    r"pass on_bad_lines='error'": "leave out --count-bad-lines",
    r"build the connectivity with their ids as pre= and post=": "state them in Python, with "
    "mx.build_connectivity(..., pre=..., post=...)",
    # What is found in the store is all that there is.
    r": use mx\.[\w.]+(\([^)]*\)(\.\w+\([^)]*\))?)?$": "",
    r"mx\.Release\(\.\.\.\)\.units\(\)|mx\.write_store": "microns-xr build",
}
# `name=value`, or `name is value` at the beginning.
_ARGUMENT = re.compile(
    r"(?<![\w.'\"-])([a-z_]+)=('[^']*'|\"[^\"]*\"|\.\.\.|[\w./:]+)?|^([a-z_]+) is (?=['\"\[(\d-])"
)
_PYTHON = re.compile(r"\bmx\.[a-z]|(?<![\w.'\"-])[a-z_]+=(?:[\s,'\"\[({.]|$)|\w\(\)")


def one_line(message: object, commands: Mapping[str, Any], command: str | None) -> str:
    """Return a message with options of a command instead of arguments of the package."""
    message = " ".join(str(message).split())
    by_command = {
        name: {param.name: param.opts[0] for param in command.params if param.opts[0][0] == "-"}
        for name, command in commands.items()
    }
    own = by_command.get(command or "", {})
    own |= {name: option for name, option in _OPTIONS.items() if option in own.values()}

    def option(match: re.Match[str]) -> str:
        name, value, subject = match.groups()
        if subject:
            return f"{own[subject]} is " if subject in own else match[0]
        if name in own:
            after = match.string[match.end() : match.end() + 1]
            value = {"True": "", "'count'": ""}.get(value or "", (value or "").strip("'\""))
            space = " " if value or after in ("[", "(", "{") else ""
            return f"{own[name]}{space}{value}"
        built = by_command["build"].get(name)
        return f"{built} of microns-xr build" if built else match[0]

    for call, words in _CALLS.items():
        message = re.sub(call, words, message)
    message = _ARGUMENT.sub(option, message)
    return f"{message} (in Python)" if _PYTHON.search(message) else message
