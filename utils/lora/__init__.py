"""LoRA (arXiv 2106.09685) on a UNet's layers: add it, save it, load it in any key format.

python -m utils.lora inspect FILE_OR_FOLDER [--json]       what is in it, and for which base model
python -m utils.lora convert IN OUT --format released|diffusers|peft|kohya
"""

from typing import TYPE_CHECKING

from utils.lora.files import BIN, CONV_IN, SAFETENSORS, LoraFile, read_lora
from utils.lora.targets import parse_targets

if TYPE_CHECKING:
    from utils.lora.layers import add_lora, fuse_lora, load_attn_procs, lora_parameters, lora_state, save_lora

__all__ = [
    "BIN", "CONV_IN", "SAFETENSORS", "LoraFile", "add_lora", "fuse_lora", "load_attn_procs", "lora_parameters",
    "lora_state", "parse_targets", "read_lora", "save_lora",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """Import names that need torch and peft (four seconds of imports) on first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from utils.lora import layers

    return getattr(layers, name)
