"""The scene that the tests in Blender render, and its export, made once; and the add-on."""

import json
from pathlib import Path

import pytest
from blender_scene import SCENE, START, export, in_blender
from helpers import python


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


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    out = tmp_path_factory.mktemp("zip") / "intrinsic_lora.zip"
    python("-m", "integrations.blender.addon_zip", "--out", out)
    return out


@pytest.fixture
def session(scene, packed, tmp_path):
    """Run a program in Blender with the scene open and the add-on installed from its zip; what it prints as JSON."""

    def run(program: str, *words: object):
        env = {"BLENDER_USER_RESOURCES": str(tmp_path / "blender")}
        out = in_blender(START + program, scene, packed, *words, env=env)
        return json.loads(out.splitlines()[-1]) if out.splitlines()[-1][:1] in "[{" else out

    return run
