"""The tests of loading, training and inference on the oldest and the newest versions that requirements.txt admits.

    pip install uv
    python tests/versions.py                                     # Python 3.11 to 3.13, oldest and newest
    python tests/versions.py --python 3.11 --versions oldest

Makes one environment each in .versions/ (5 GB with CUDA's packages; UV_EXTRA_INDEX_URL and UV_INDEX_STRATEGY as in
.github/workflows/weekly.yml avoid those), and prints a table of what was installed and how the tests ended. Exit
status 1 if any failed. --resolve_only: print the versions and install nothing.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / ".versions"
RESOLUTION = {"oldest": "lowest-direct", "newest": "highest"}
RUNNERS = {"oldest": ["pytest==8.0", "hypothesis==6.100"], "newest": ["pytest", "hypothesis"]}
TESTS = ["tests/base_model", "tests/lora", "tests/training", "tests/inference"]
TESTS += ["tests/test_minimal.py", "tests/test_objectives.py"]
LISTED = "torch diffusers transformers accelerate peft huggingface-hub numpy pillow".split()


def uv(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run(["uv", *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False)


def resolved(python: str, versions: str) -> dict[str, str]:
    """Package -> version, of those in LISTED. Ends the program if no set fits."""
    words = ["pip", "compile", "--quiet", "--no-header", "--no-annotate", "--only-binary", ":all:"]
    done = uv(*words, "--python-version", python, "--resolution", RESOLUTION[versions], "requirements.txt")
    if done.returncode:
        sys.exit(f"error: Python {python}, {versions}: {done.stderr.strip()}")
    return {name: found[1] for name in LISTED if (found := re.search(rf"^{name}==(\S+)", done.stdout, re.MULTILINE))}


def tested(python: str, versions: str) -> str:
    """How the tests ended in an environment made for them: pytest's last line, or the error of the installation."""
    place = PLACE / f"{python}-{versions}"
    shutil.rmtree(place, ignore_errors=True)
    install = ["pip", "install", "--python", place, "--only-binary", ":all:", "--resolution", RESOLUTION[versions]]
    for done in (
        uv("venv", "--python", python, place),
        uv(*install, "-r", "requirements.txt", *RUNNERS[versions]),
    ):
        if done.returncode:
            return f"FAILED to install: {done.stderr.strip()[-500:]}"
    words = [place / "bin" / "python", "-m", "pytest", "-m", "not slow and not gpu", *TESTS]
    done = subprocess.run([*map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False)
    (place / "pytest.txt").write_text(done.stdout + done.stderr)
    failed = re.findall(r"^(?:FAILED|ERROR) \S+", done.stdout, re.MULTILINE)
    return (
        "passed"
        if done.returncode == 0
        else f"FAILED: {', '.join(failed) or done.stdout[-300:]}, see {place}/pytest.txt"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=["3.11", "3.12", "3.13"], help="versions of Python")
    parser.add_argument(
        "--versions", nargs="+", default=list(RESOLUTION), choices=list(RESOLUTION), help="of packages"
    )
    parser.add_argument("--resolve_only", action="store_true", help="print the versions and install nothing")
    args = parser.parse_args()
    if shutil.which("uv") is None:
        sys.exit("error: uv is not installed: pip install uv")
    ends = []
    for python in args.python:
        for versions in args.versions:
            packages = ", ".join(f"{name} {version}" for name, version in resolved(python, versions).items())
            print(f"Python {python}, {versions}: {packages}", flush=True)
            if not args.resolve_only:
                ends.append(tested(python, versions))
                print(f"    {ends[-1]}", flush=True)
    sys.exit(any(end != "passed" for end in ends))


if __name__ == "__main__":
    main()
