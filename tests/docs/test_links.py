"""Every relative link, anchor and image in the project's Markdown points at something that exists."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = "docs benchmarks studies interop utils integrations miniworld".split()
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
IMAGES = sorted(
    path
    for folder in ("docs", "studies/results")
    for path in (ROOT / folder).iterdir()
    if path.suffix in (".png", ".jpg", ".svg")
)
MOST_WORDS = 14_000  # in docs/*.md
COMMENT = re.compile(r"<!--.*?-->\n?", re.DOTALL)  # not displayed
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+(?:\([^()\s]*\))?)\)")


def links(text: str) -> list[str]:
    """Targets of Markdown links, code blocks and inline code left out."""
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    return LINK.findall(text)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings: lower case, punctuation dropped, spaces to hyphens."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", FENCE.sub("", text), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        base = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        name, number = base, 0
        while name in found:
            number += 1
            name = f"{base}-{number}"
        found.add(name)
    return found


def problem(page: Path, target: str) -> str | None:
    """The problem with a link of `page`, or None. Links to the web are not followed."""
    if re.match(r"[a-z]+:", target):
        return None
    path, _, anchor = unquote(target).partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.is_relative_to(ROOT) or not file.exists():
        return f"{target}: no such file"
    if anchor and (file.suffix != ".md" or anchor not in anchors(file.read_text())):
        return f"{target}: no such heading"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_of_the_page_resolves(page):
    broken = [found for target in links(page.read_text()) if (found := problem(page, target))]
    assert broken == []


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.is_relative_to(ROOT / "docs") or page.is_relative_to(ROOT / "studies")],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_every_page_can_be_reached_from_the_readme(page):
    seen, left = set(), [ROOT / "README.md"]
    while left:
        at = left.pop()
        if at not in seen:
            seen.add(at)
            targets = [unquote(target).partition("#")[0] for target in links(at.read_text())]
            left += [found for target in targets if (found := (at.parent / target).resolve()) in PAGES]
    assert page in seen


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_every_image_is_used_on_a_page_and_is_small(image):
    assert any(image.name in target for page in PAGES for target in links(page.read_text()))
    assert image.stat().st_size < 310_000


def test_a_wrong_link_is_found():
    page = ROOT / "docs" / "data.md"
    assert problem(page, "nowhere.md") == "nowhere.md: no such file"
    assert problem(page, "data.md#nothing-here") == "data.md#nothing-here: no such heading"
    assert problem(page, "../README.md#install") is None
    assert links("[a](b.md) `[c](d.md)` ![e](f.png)\n```\n[g](h.md)\n```\n") == ["b.md", "f.png"]
    assert anchors("# A b\n## Your own: data!\n## A b\n") == {"a-b", "your-own-data", "a-b-1"}


def test_the_readme_has_at_most_180_lines():
    assert len(COMMENT.sub("", (ROOT / "README.md").read_text()).splitlines()) <= 180


def test_the_docs_stay_short():
    """Details belong next to the code, and results next to what measures them. Rules of tables and comments do not
    count.
    """
    words = [word for page in (ROOT / "docs").glob("*.md") for word in COMMENT.sub("", page.read_text()).split()]
    assert sum(re.search(r"\w", word) is not None for word in words) <= MOST_WORDS
