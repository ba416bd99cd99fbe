"""Provenance of a run: library versions and the project's commit."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

from utils import __version__
from utils.paths import ROOT

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Library -> version, with Python and this project."""
    return {
        "project": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in LIBRARIES},
    }


def git_state(folder: Path = ROOT) -> dict[str, str | bool | None]:
    """git_commit and git_dirty (tracked files changed since); None and None where `folder` is not a git checkout.

    A copy of the project inside another repository is not a checkout: that repository's commit is not the project's.
    """
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != folder.resolve():
        return {"git_commit": None, "git_dirty": None}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"git_commit": _git(folder, "rev-parse", "HEAD"), "git_dirty": None if changed is None else bool(changed)}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
