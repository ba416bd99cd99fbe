"""What the record beside pseudo labels says of them, for those who use the labels."""

import json
from collections.abc import Iterable
from pathlib import Path

from utils.errors import InputError

PROVENANCE = "provenance.json"  # in a folder of labels
OLDER = {"depth_coding": "linear"}  # what older records did not need to say


def check_depth_coding(folders: Iterable[Path], coding: str, cure: str) -> None:
    """InputError, ending in `cure`, where the provenance.json nearest above depth labels says another coding.

    folders: of labels; each, and each above it, is looked into once. Labels without a record are taken at the user's
    word.
    """
    seen: set[Path] = set()
    for folder in folders:
        for place in (folder, *folder.absolute().parents):
            if place in seen:
                break
            seen.add(place)
            path = place / PROVENANCE
            if not path.is_file():
                continue
            try:
                found = OLDER | json.loads(path.read_text())
            except (OSError, ValueError, TypeError) as error:
                raise InputError(f"{path}: cannot be read ({error}); remove it or make the labels anew") from None
            if found.get("task") == "depth" and found["depth_coding"] != coding:
                raise InputError(f"{path}: these labels have {found['depth_coding']} depth, not {coding}: {cure}")
            break


def record_above(folder: Path) -> dict:
    """The content of the provenance.json nearest above `folder`, or in it; {} if there is no readable one."""
    for place in (folder, *folder.absolute().parents):
        try:
            found = json.loads((place / PROVENANCE).read_text())
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            return {}
        return OLDER | found if isinstance(found, dict) else {}
    return {}
