"""LoRA (arXiv 2106.09685) on a UNet's attention layers: add it, save it, load it in any key format.

python -m utils.lora inspect FILE_OR_FOLDER [--json]       what is in it, and for which base model
python -m utils.lora convert IN OUT --format released|diffusers|peft|kohya
"""

from utils.lora.files import BIN, CONV_IN, SAFETENSORS, read_lora
from utils.lora.layers import add_lora, fuse_lora, load_attn_procs, lora_parameters, lora_state, save_lora

__all__ = [
    "BIN", "CONV_IN", "SAFETENSORS", "add_lora", "fuse_lora", "load_attn_procs", "lora_parameters", "lora_state",
    "read_lora", "save_lora",
]  # fmt: skip
