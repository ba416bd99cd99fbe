"""A LoRA on an autoregressive generator, ready to predict the maps of pictures."""

from collections.abc import Sequence

import torch
from PIL import Image

from utils.generators.ar_files import load_autoregressive
from utils.generators.ar_objective import TokenPrediction
from utils.image_io.images import Crop
from utils.inference.engine import Prepared
from utils.inference.job import Job
from utils.inference.prediction import Prediction, merge_batches
from utils.intrinsics import Intrinsic
from utils.kinds.alignment import linear_map
from utils.lora import load_attn_procs
from utils.noise import noise_of
from utils.system.precision import warn_of_slow_bf16


class TokenPredictor:
    """Maps of the centre squares of pictures, by `utils.inference.run.predict_all`.

    temperature: 0 for the likeliest tokens; above it they are sampled, by (seed, name, member of the ensemble).
    """

    def __init__(
        self,
        job: Job,
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int,
        temperature: float = 0.0,
        ensemble_size: int = 1,
        seed: int = 1234,
    ):
        self.job, self.batch_size, self.ensemble_size, self.seed = job, batch_size, ensemble_size, seed
        self.facts = job.facts  # once: it reads the whole file
        self.base = load_autoregressive(job.model)
        said = load_attn_procs(self.base.network, job.name)
        warn_of_slow_bf16(dtype, device.type, "--dtype fp32")
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
        intrinsic, members = self.job.intrinsic, []
        for member in range(self.ensemble_size):
            noise = [noise_of(self.seed, name, member) for name in names]
            maps = self.objective.predict(self.base.network, rgb, noise).float().cpu()
            members.append(linear_map(maps, self.job.depth_coding))
        merged = zip(*merge_batches(members, intrinsic), strict=True)
        return [{intrinsic.name: Prediction(intrinsic, one, spread, self.facts)} for one, spread in merged]
