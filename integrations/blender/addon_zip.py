"""Packs the add-on as an extension for Blender 4.2 and newer; the same files make the same bytes.

    python -m integrations.blender.addon_zip --out intrinsic_lora.zip

In Blender: Edit > Preferences > Add-ons > Install from Disk. Then set the project's folder in the
add-on's preferences.
"""

import zipfile
from pathlib import Path

from utils.cli import Parser, path_flag
from utils.errors import InputError, run

ADDON = Path(__file__).with_name("addon")
EARLIEST = (1980, 1, 1, 0, 0, 0)  # that a zip can say


def pack(out: Path) -> None:
    """Stored, not deflated: deflate's bytes differ between versions of zlib."""
    files = sorted(path for path in ADDON.iterdir() if path.suffix in (".py", ".toml"))
    with zipfile.ZipFile(out, "w") as packed:
        for file in files:
            entry = zipfile.ZipInfo(file.name, EARLIEST)
            entry.external_attr, entry.create_system = 0o644 << 16, 3
            packed.writestr(entry, file.read_bytes())


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m integrations.blender.addon_zip", description=__doc__)
    parser.add_argument("--out", type=path_flag, default=Path("intrinsic_lora.zip"), help="file to write")
    args = parser.parse_args(argv)
    try:
        pack(args.out)
    except OSError as error:
        raise InputError(f"--out={args.out}: cannot be written ({error.strerror})") from None
    print(f"{args.out}; in Blender: Edit > Preferences > Add-ons > Install from Disk")


if __name__ == "__main__":
    run(main)
