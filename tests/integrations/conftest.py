"""The scene that the tests in Blender render, and its export, made once."""

from pathlib import Path

import pytest
from blender_scene import SCENE, export, in_blender


@pytest.fixture(scope="session")
def scene(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("blender") / "room.blend"
    in_blender(SCENE, path)
    return path


@pytest.fixture(scope="session")
def filed(scene, tmp_path_factory) -> Path:
    """The scene from its own camera."""
    out = tmp_path_factory.mktemp("filed") / "data"
    export(scene, out, "--from_file", "--samples", 64)
    return out
