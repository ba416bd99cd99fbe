"""Docstrings, comments and docs name only modules that exist."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest
from helpers import ROOT

PACKAGES = "utils dataloaders miniworld benchmarks studies integrations interop generators app".split()
FILE = re.compile(r"(?<![\w/.*{}<>\\-])((?:[\w-]+/)*[\w-]+\.py)\b(?![\w*])")
DOTTED = re.compile(rf"(?<![\w./])((?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+)(?!\w|/)")
DATA = re.compile(r"\.(jpg|png|md|json)$")  # a file of a package's name
ELSEWHERE = {  # other projects' files, and one that a reader is to write
    "convert_weight.py",
    "scripts/convert_diffusers_to_original_stable_diffusion.py",
    "sd_single_diode_pseudo_roughness.py",
}


def prose(path: Path) -> str:
    """The comments and docstrings of a module, or a whole page."""
    text = path.read_text()
    if path.suffix != ".py":
        return text
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    parts = [token.string for token in tokens if token.type == tokenize.COMMENT]
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    parts += [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    return "\n".join(parts)


def exists(dotted: str) -> bool:
    """True for a package, a module, or a name that a module defines or imports."""
    first, *rest = dotted.split(".")
    place = ROOT / first
    while rest and ((place / rest[0]).is_dir() or (place / f"{rest[0]}.py").is_file()):
        place = place / rest.pop(0)
    if not rest:
        return place.is_dir() or place.with_suffix(".py").is_file()
    file = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
    return file.is_file() and re.search(rf"\b{rest[0]}\b", file.read_text()) is not None


FOLDERS = [*PACKAGES, "tests", "docs"]
FILES = [*ROOT.glob("*.*"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.*"))]
NAMES = [f"/{path.relative_to(ROOT)}" for path in FILES]
PAGES = sorted(path for path in FILES if path.suffix in (".py", ".md") and path.name != "CHANGELOG.md")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_that_is_named_exists(path):
    text = prose(path)
    gone = {name for name in FILE.findall(text) if not any(one.endswith(f"/{name}") for one in NAMES)}
    gone |= {name for name in DOTTED.findall(text) if not exists(name) and not DATA.search(name)}
    assert gone <= ELSEWHERE, f"{path}: no longer there: {sorted(gone - ELSEWHERE)}"


def test_names_that_are_gone_are_found():
    assert FILE.findall("see (`durable.py`), utils/velocity.py and x.pyc") == ["durable.py", "utils/velocity.py"]
    assert DOTTED.findall("`utils.gone.name`, miniworld.scenes") == ["utils.gone.name", "miniworld.scenes"]
    assert not exists("utils.gone.name") and not exists("utils.latents.gone") and exists("utils.latents.mode")
