"""Intrinsic images from photographs.

from utils.inference import Predictor

predict = Predictor("path/to/output")           # a LoRA of a training script; a list of them shares one base
normal = predict("photo.jpg")["normal"]         # the whole image at its own size
normal.values, normal.frame                     # float32 (H,W,3) unit vectors, "opencv (x right, ...)"
check_conventions(normal, truth)                # [], or which other convention fits the truth better
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from utils.inference.prediction import Prediction, check_conventions
    from utils.inference.predictor import Predictor

__all__ = ["Prediction", "Predictor", "check_conventions"]


def __getattr__(name: str) -> object:
    """Names that need torch and diffusers (seconds of imports) are imported on first use (PEP 562)."""
    if name == "Predictor":
        from utils.inference.predictor import Predictor

        return Predictor
    if name in ("Prediction", "check_conventions"):
        from utils.inference import prediction

        return getattr(prediction, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
