"""The small file in a folder of tables that says which release they are of."""

from __future__ import annotations

import json
from pathlib import Path

from microns_xr.errors import ReleaseMismatchError, SourceError
from microns_xr.source.synapse_bytes import write_whole

__all__ = ["IDENTITY_FILE", "read_identity", "write_identity"]

IDENTITY_FILE = "release.json"


def write_identity(folder: Path, datastack: str, version: int) -> None:
    """Write the release of a folder, unless it is there; refuse a folder of another release.

    Raises
    ------
    ReleaseMismatchError
        If the folder says that it holds another release.
    SourceError
        If the folder cannot be made or written.
    """
    found = read_identity(folder)
    if found is not None and found != (datastack, version):
        raise ReleaseMismatchError(
            f"{folder} holds tables of {found[0]} v{found[1]}, not of {datastack} v{version}: "
            "use another folder, releases must not be mixed"
        )
    if found is None:
        said = json.dumps({"datastack": datastack, "version": version}) + "\n"
        write_whole(folder / IDENTITY_FILE, said.encode())


def read_identity(folder: Path) -> tuple[str, int] | None:
    """Return datastack and version of a folder of tables, None where it does not say.

    The file lies in the release's folder, which may be the parent of a ``raw`` folder.

    Raises
    ------
    SourceError
        If the file is there and cannot be read.
    """
    for place in (folder, folder.parent) if folder.name == "raw" else (folder,):
        file = place / IDENTITY_FILE
        if not file.is_file():
            continue
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
            return str(said["datastack"]), int(said["version"])
        except (ValueError, KeyError, TypeError) as error:
            raise SourceError(
                f"{file} does not say a datastack and a version ({error}): correct or remove it"
            ) from error
    return None
