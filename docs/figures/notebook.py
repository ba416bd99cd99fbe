"""Draws docs/notebook.jpg: the last part of the notebook, executed, with its outputs. python docs/figures/notebook.py

Needs Chromium. The page looks like a notebook's, but is made here, so that no JupyterLab is needed.
"""

import sys
import tempfile
from pathlib import Path

import nbformat
from markdown_it import MarkdownIt
from nbclient import NotebookClient
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))
from screenshot import capture  # noqa: E402

FIRST = "## Normals"  # heading of the first cell that is shown
WIDTH, HEIGHT = 800, 1750
STYLE = """body { font: 14px/1.5 system-ui, sans-serif; margin: 12px 18px; width: 760px } h2 { margin: 14px 0 6px }
p { margin: 6px 0 } pre { font-size: 11.5px; line-height: 1.35; margin: 0; white-space: pre-wrap }
.highlight { background: #f5f5f5; border: 1px solid #ddd; border-radius: 3px; padding: 6px 10px; margin: 6px 0 }
img { max-width: 100%; display: block } p code { background: #eee; padding: 1px 4px; font-size: 12px }"""


def html(notebook: nbformat.NotebookNode) -> str:
    """The cells from FIRST on."""
    formatter, parts = HtmlFormatter(), []
    first = next(i for i, cell in enumerate(notebook.cells) if cell.source.startswith(FIRST))
    for cell in notebook.cells[first:]:
        if cell.cell_type == "markdown":
            parts.append(MarkdownIt().render(cell.source))
            continue
        parts.append(highlight(cell.source, PythonLexer(), formatter))
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                parts.append(f'<img src="data:image/png;base64,{output.data["image/png"]}">')
            elif output.output_type == "stream":
                parts.append(f"<pre>{output.text}</pre>")
    style = f"<style>{STYLE}\n{formatter.get_style_defs('.highlight')}</style>"
    return f'<!doctype html><meta charset="utf-8">{style}{"".join(parts)}'


def main() -> None:
    notebook = nbformat.read(ROOT / "notebooks" / "load_checkpoint.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "notebook.html")
        page.write_text(html(notebook))
        capture(page.as_uri(), WIDTH, HEIGHT).save(ROOT / "docs" / "notebook.jpg", quality=80, optimize=True)


if __name__ == "__main__":
    main()
