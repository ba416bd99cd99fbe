"""Starting Blender for a program: as the application, or as a Python that has `bpy`."""

import os
import subprocess
from pathlib import Path

from utils.errors import InputError

OLDEST = (4, 2)
INSTALL = 'python3.11 -m venv .bpy && .bpy/bin/pip install "bpy==4.2.*"'
PROBE = """
import bpy, sys
print("BPY", bpy.app.version_string)
bpy.ops.wm.open_mainfile(filepath=sys.argv[-1], load_ui=False, use_scripts=False)
print("CAMERAS", sum(one.type == "CAMERA" for one in bpy.context.scene.objects))
"""


def start(blender: str, program: Path | str, argument: Path) -> subprocess.CompletedProcess:
    """Run a program, a file or its text, whose sys.argv ends with `argument`; output is kept as text.

    InputError where `blender` cannot be run. The user's add-ons, start-up file and colour configuration take no part.
    """
    is_file = isinstance(program, Path)
    if Path(blender).stem.lower().startswith("blender"):
        words = [blender, "--background", "--factory-startup", "--python-exit-code", "1"]
        words += ["--python" if is_file else "--python-expr", str(program), "--", str(argument)]
    else:
        words = [blender, *([str(program)] if is_file else ["-c", program]), str(argument)]
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "OCIO")}
    try:
        return subprocess.run(words, env=env, capture_output=True, text=True)
    except OSError as error:
        raise InputError(f"--bpy_python={blender}: cannot be run ({error.strerror})") from None


def no_bpy(blender: str) -> InputError:
    """Error message for a Python without `bpy`."""
    return InputError(f"--bpy_python={blender}: has no bpy; {INSTALL}, then --bpy_python .bpy/bin/python")


def examine(blender: str, scene: Path) -> tuple[str, int]:
    """Blender's version, as "4.2", and how many cameras the scene holds; InputError where it cannot be opened."""
    done = start(blender, PROBE, scene)
    words = done.stdout.split()
    if "BPY" not in words:
        raise no_bpy(blender)
    version = ".".join(words[words.index("BPY") + 1].split(".")[:2])
    if tuple(map(int, version.split("."))) < OLDEST:
        raise InputError(f"--bpy_python={blender}: is Blender {version}; 4.2 or newer is needed: {INSTALL}")
    if "CAMERAS" not in words:
        raise InputError(f"{scene}: Blender cannot open it ({done.stderr.strip()[-200:]})")
    return version, int(words[words.index("CAMERAS") + 1])
