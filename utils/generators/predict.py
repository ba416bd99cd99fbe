"""A LoRA on an autoregressive generator, ready to predict the maps of pictures."""

from collections.abc import Sequence

import torch
from PIL import Image

from utils.generators.ar_files import load_autoregressive
from utils.generators.ar_objective import TokenPrediction
from utils.inference.engine import Prepared
from utils.inference.job import Job
from utils.inference.prediction import Prediction
from utils.intrinsics import Intrinsic
from utils.lora import load_attn_procs
from utils.maps.depth_coding import linear_map
from utils.maps.images import Crop
from utils.noise import noise_of


class TokenPredictor:
    """Maps of the centre squares of pictures, by `utils.inference.run.predict_all`.

    temperature: 0 for the likeliest tokens; above it they are sampled, each picture's by (seed, name).
    """

    def __init__(
        self, job: Job, device: torch.device, dtype: torch.dtype, batch_size: int, temperature: float, seed: int
    ):
        self.job, self.batch_size, self.seed = job, batch_size, seed
        self.facts = job.facts  # once: it reads the whole file
        self.base = load_autoregressive(job.model)
        said = load_attn_procs(self.base.network, job.name)
        self.base.to(device, dtype)
        self.device = device
        self.objective = TokenPrediction.of(self.base.tokens, said, temperature)

    @property
    def intrinsics(self) -> list[Intrinsic]:
        return [self.job.intrinsic]

    def prepare(self, image: Image.Image) -> Prepared:
        """The centre square at the generator's resolution."""
        crop = Crop.of(*image.size, self.base.resolution)
        return Prepared(crop.picture(image), crop, image)

    @torch.inference_mode()
    def predict(self, images: Sequence[Prepared], names: Sequence[str]) -> list[dict[str, Prediction]]:
        rgb = torch.stack([image.rgb for image in images]).to(self.device)
        noise = [noise_of(self.seed, name, 0) for name in names]
        maps = self.objective.predict(self.base.network, rgb, noise).float().cpu()
        intrinsic, coding = self.job.intrinsic, self.job.depth_coding
        return [{intrinsic.name: Prediction(intrinsic, one, None, self.facts)} for one in linear_map(maps, coding)]
