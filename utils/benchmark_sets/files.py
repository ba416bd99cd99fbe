"""Files below a folder, and members of the tar archives in it, under one kind of name. Nothing is unpacked."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import NamedTuple

from utils.errors import InputError


class File(NamedTuple):
    """A file or a member of an archive. name: relative to the folder, an archive being a folder, in posix form.

    path: of the file or of the archive. start: of a member's bytes in it, None of a file.
    """

    name: str
    path: Path
    size: int
    start: int | None = None

    def read(self) -> bytes:
        """The content. Any number of threads may read one archive. Raises InputError naming the file."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.start or 0)
                content = file.read(self.size if self.start is not None else -1)
        except OSError as error:
            raise InputError(f"{self.shown}: cannot be read ({error.strerror}); replace it") from None
        if len(content) != self.size:
            raise InputError(f"{self.shown}: has {len(content)} of {self.size} bytes; copy it again")
        return content

    @property
    def shown(self) -> Path:
        """The path that messages name: of a member, its archive's with the name in it."""
        return self.path if self.start is None else self.path / self.name.partition(f"{self.path.name}/")[2]

    @property
    def state(self) -> tuple[str, int, int]:
        """The signs of a changed content: name, size, and time of the last change in nanoseconds."""
        return self.name, self.size, self.path.stat().st_mtime_ns


def find_all(folder: Path, flag: str) -> dict[str, File]:
    """Name -> every file below `folder`, sorted, archives (*.tar) replaced by their members, whose names may begin
    with ./. Raises InputError where there is no such folder, or an archive cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"{flag} {folder}: no such folder; name the one that the sets are in")
    found: list[File] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(place, name)
            relative = path.relative_to(folder).as_posix()
            if path.suffix.lower() == ".tar":
                found += _members(path, relative)
            elif path.is_file():
                found.append(File(relative, path, path.stat().st_size))
    return {file.name: file for file in sorted(found)}


def _members(path: Path, name: str) -> list[File]:
    try:
        with tarfile.open(path, "r:") as archive:  # without compression: bytes are read at their place
            return [
                File(f"{name}/{os.path.normpath(one.name)}", path, one.size, one.offset_data)
                for one in archive
                if one.isreg()
            ]
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{path}: not a readable .tar without compression ({error}); copy it again") from None
