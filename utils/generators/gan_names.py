"""Names of StyleGAN2s. Imports nothing heavy, so that a command line can refuse a mistyped one at once."""

from pathlib import Path

from utils.cli import nearest
from utils.errors import InputError

PICKLE = (
    "NVIDIA's pickle holds program code and is not opened here: convert it where you trust it, with convert_weight.py "
    "of github.com/rosinality/stylegan2-pytorch, and pass the .pt file that it writes"
)


def check_gan(name: str) -> None:
    """InputError where it is neither a folder nor a .pt file that is here."""
    path = Path(name)
    if path.suffix == ".pkl":
        raise InputError(f"{path}: {PICKLE}")
    if not path.exists():
        raise InputError(f"{path}: no such folder or .pt file of a StyleGAN2{nearest(name)}")
