"""HTML pages that open from disk and load nothing from elsewhere. The templates are next to this file.

Jinja2 is not in requirements.txt: every PyTorch requires it.
"""

import base64
import io
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from utils.system.atomic import make_folder, save


def write_page(folder: str | Path, flag: str, template: str, **values: object) -> Path:
    """Write `folder`/index.html from a template and its values, all of which are escaped; its path.

    Raises InputError naming the flag where the folder cannot be written.
    """
    path = Path(folder) / "index.html"
    make_folder(path.parent, flag)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).stream(**values)
    save(path, lambda part: page.dump(str(part), encoding="utf-8", errors="backslashreplace"))
    return path


def data_uri(image: Image.Image, kind: str, **options: object) -> str:
    """An image as a data URI. kind: PNG or JPEG; options: for its encoder."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()
