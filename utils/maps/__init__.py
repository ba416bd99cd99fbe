"""Former names of modules, for notebooks and scripts written for version 0.2; use utils.image_io and utils.kinds."""

import sys
from importlib import import_module

NOW = {
    "depth_coding": "utils.kinds.alignment",
    "frames": "utils.kinds.frames",
    "images": "utils.image_io.images",
    "files": "utils.image_io.files",
    "rgb": "utils.image_io.rgb",
}
for _name, _module in NOW.items():
    sys.modules[f"{__name__}.{_name}"] = import_module(_module)
