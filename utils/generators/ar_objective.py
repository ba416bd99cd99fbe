"""An autoregressive generator that continues a picture's tokens with its map's.

Said of the paper's way (arXiv 2311.17137, section 3): a LoRA on the attention layers of VQGAN's transformer. How the
picture is given and what is learnt is not said; here the picture's tokens come first, and the label's are learnt.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, cast, get_args

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from utils.errors import InputError
from utils.generators.picture_tokens import Positions, Tokens, choose

Decoding = Literal["one_by_one", "at_once"]


@dataclass
class TokenPrediction:
    """[picture tokens] -> [label tokens], decoded by the generator's own VQ decoder.

    decoding: "one_by_one": each label token is read for the next, as the generator draws pictures. "at_once": all come
    from one pass over the picture's tokens, which are read twice.
    temperature: of the prediction; 0: the likeliest token each time.
    """

    tokens: Tokens
    positions: Positions = "again"
    decoding: Decoding = "one_by_one"
    temperature: float = 0.0
    vae: None = None
    reads: ClassVar[str] = "rgb"

    @classmethod
    def of(cls, tokens: Tokens, metadata: Mapping[str, str], temperature: float = 0.0) -> "TokenPrediction":
        """What a LoRA with this metadata has learnt. InputError for a way that this version does not know."""
        positions, decoding = metadata.get("positions", "again"), metadata.get("decoding", "one_by_one")
        if positions not in get_args(Positions) or decoding not in get_args(Decoding):
            raise InputError(
                f"positions {positions!r}, decoding {decoding!r}: unknown to this version; take a newer one"
            )
        return cls(tokens, cast(Positions, positions), cast(Decoding, decoding), temperature)

    @property
    def metadata(self) -> dict[str, object]:
        return {"method": "autoregressive", "positions": self.positions, "decoding": self.decoding}

    def loss(self, network: nn.Module, batch: dict[str, Tensor], noise: list[Generator]) -> Tensor:
        """Cross-entropy of the label's tokens, mean over them, in nats.

        batch: rgb, target (B,3,S,S) in [-1,1], or their tokens (B,N), rgb_tokens and target_tokens.
        """
        if "rgb_tokens" in batch:
            picture, label = batch["rgb_tokens"], batch["target_tokens"]
        else:
            picture, label = self.tokens.encode(torch.cat([batch["rgb"], batch["target"]])).chunk(2)
        read = label if self.decoding == "one_by_one" else None
        logits = network(picture, read, self.positions)  # only called: DDP and torch.compile wrap calls alone
        return F.cross_entropy(logits.float().transpose(1, 2), label)

    def predict(self, network: nn.Module, rgb: Tensor, noise: list[Generator]) -> Tensor:
        """rgb (B,3,S,S) in [-1,1] -> map (B,3,S,S) about [-1,1], not clamped. `noise` counts at a temperature only."""
        picture = self.tokens.encode(rgb)
        if self.decoding == "one_by_one":
            label = network.complete(picture, self.positions, self.temperature, noise)
        else:
            label = choose(network(picture, None, self.positions).float(), self.temperature, noise)
        return self.tokens.decode(label)
