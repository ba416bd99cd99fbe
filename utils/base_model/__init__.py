"""Base models: from a folder, a hub name or a single file to frozen parts.

names                checks a name before anything heavy is imported; moved models and licences
single_file          recognises and reads a .safetensors or .ckpt file; imports torch only for the weights
single_file_parts    builds the parts from such a file
parts                what all families share: `Family`, the interface of a base model
stable_diffusion     Stable Diffusion 1.x and 2.x: `load_base` returns its `Base`; the only family of AugUNet
sdxl, sd3            one module for every other family
families             `open_base`: a base of any family, by its model_index.json
"""

from typing import Any, Protocol


class Frozen(Protocol):
    """The attributes of a base model that the training loop uses, also of generators that are not a `Family`.

    name: hub name, or absolute path of the folder or file; revision: of the hub model.
    """

    name: str
    revision: str | None

    @property
    def network(self) -> Any:
        """The network that the LoRA sits on."""

    def to(self, device: Any, dtype: Any, /) -> Any:
        """Move and cast the network, and what its objective computes with, in place."""
