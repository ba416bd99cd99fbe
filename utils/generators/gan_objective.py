"""A GAN that makes the map instead of the picture: G(w) is the picture, G'(w), with the LoRA, its map.

Said of the paper's way (arXiv 2311.17137, section 3): a LoRA on the affine layers of StyleGAN, trained on generated
pictures that other networks have labelled. Loss, rank and number of samples are not said; the loss here is the mean
squared error of pixels.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor, nn
from torch.nn import functional as F


@dataclass
class PixelPrediction:
    """w -> map, by the generator's own layers: G'(w), with the generator's own noise pictures."""

    vae: None = None
    reads: ClassVar[str] = "w"

    @property
    def metadata(self) -> dict[str, object]:
        return {"method": "gan"}

    def loss(self, network: nn.Module, batch: dict[str, Tensor], noise: list[Generator]) -> Tensor:
        """mse(G'(w), target), a scalar; w (B,D), target (B,3,S,S) in [-1,1]. `noise` is not used."""
        return F.mse_loss(network(batch["w"]).float(), batch["target"])

    def predict(self, network: nn.Module, w: Tensor, noise: list[Generator] | None = None) -> Tensor:
        """w (B,D) -> map (B,3,S,S) about [-1,1], not clamped."""
        return network(w)
