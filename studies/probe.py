"""One short training of a LoRA on latents in memory, and its errors on unseen images: the unit of paper_questions.

The data sets, the objective, the LoRA, the order of samples, the noise and the scores are those of the training
scripts. Only the loop is shorter, because nothing is saved or resumed.
"""

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataloaders.diode import Diode
from miniworld.pretraining.generator import fingerprint
from utils.base_model.parts import Family
from utils.base_model.sd3 import StableDiffusion3
from utils.errors import InputError
from utils.intrinsics import INTRINSICS, Intrinsic
from utils.kinds.base import score_of
from utils.latents import moments
from utils.lora import add_lora, parse_targets
from utils.lora.layers import layers_of
from utils.lora.targets import KINDS
from utils.noise import generators
from utils.objectives import SingleStep
from utils.system.atomic import replace
from utils.training.cache import ImagesAndLabels
from utils.training.data import EndlessBatches


@dataclass(frozen=True)
class Recipe:
    """Settings of all trainings of a study. The learning rate falls to 0 linearly; gradients are clipped to 1."""

    steps: int
    batch: int
    mixed_precision: str  # "no" or "bf16"
    resolution: int


@dataclass(frozen=True)
class Setting:
    """Settings of one training.

    base: "base", or "velocity" for the study's second base model, which predicts velocity, or "flow". unet:
    "pretrained", "random", or the path of a snapshot of its pretraining. targets: the kinds of layers that the LoRA
    sits on, as --lora_targets; where: the part of the LoRA that trains, of PLACES or HALVES.
    """

    task: str = "normal"
    unet: str = "pretrained"
    rank: int = 8
    labels: int = 1000
    timestep: float = 999
    targets: str = "attention"
    where: str = "everywhere"
    learning_rate: float = 4e-3
    base: str = "base"
    seed: int = 0

    @property
    def name(self) -> str:
        """Distinct for distinct settings, and fit for a file."""
        values = {**asdict(self), "unet": Path(self.unet).stem}
        return "-".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values.values())


# where a LoRA on attention may train: part of a parameter's name, for everywhere ""
PLACES = {
    "everywhere": "",
    "self-attention": ".attn1.",
    "cross-attention": ".attn2.",
    "q": ".to_q.",
    "k": ".to_k.",
    "v": ".to_v.",
    "out": ".to_out.0.",
    "down": "down_blocks.",
    "mid": "mid_block.",
    "up": "up_blocks.",
}
HALVES = {"first half": False, "last half": True}  # a half of a transformer's blocks: whether it is the last


TOLERANCE = 0.1  # how far parameter counts may lie apart and still be called equal


@dataclass
class TaskData:
    """latents: name -> (N,4,h,w) of the training images and labels (utils/latents.py); unseen: samples to score."""

    latents: dict[str, Tensor]
    unseen: list[dict]


def load_task(root: Path, name: str, base: Family, recipe: Recipe, folder: Path, device: str = "cpu") -> TaskData:
    """Encode the training set of a DIODE-like tree once (kept in `folder`) and read its validation set."""
    intrinsic = INTRINSICS[name]
    train, unseen = (
        Diode(intrinsic, root / intrinsic.truth_folder, root / "pseudo" / name, split, resolution=recipe.resolution)
        for split in ("train", "val")
    )
    key = zlib.crc32(f"{train.fingerprint} {recipe} {fingerprint(base.vae)}".encode())
    path = folder / f"latents-{name}-{key:08x}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = []
        for batch in tqdm(DataLoader(ImagesAndLabels(train), 32), desc=f"encoding {name}", mininterval=2):
            with autocast(recipe, torch.device(device)):
                found = moments(base.vae, {key: value.to(device) for key, value in batch.items()})
            parts.append({key: value.float().cpu() for key, value in found.items()})
        whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        replace(path, lambda part: torch.save(whole, part))
    latents = torch.load(path, weights_only=True)
    return TaskData({key: value.to(device) for key, value in latents.items()}, [unseen[i] for i in range(len(unseen))])


def make_unet(base: Family, setting: Setting) -> nn.Module:
    """A network of the base's shape with the setting's weights, frozen, on the base's device."""
    own = base.network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        network = type(own).from_config(own.config)
    if setting.unet == "pretrained":
        network.load_state_dict(own.state_dict())
    elif setting.unet != "random":  # a transformer's has no buffers
        state = torch.load(setting.unet, weights_only=True)[base.prefix]
        network.load_state_dict(network.state_dict() | state)
    return network.requires_grad_(False).eval().to(own.device)


def place_lora(unet: nn.Module, setting: Setting) -> list[nn.Parameter]:
    """Add the setting's LoRA; return those of its parameters that train. The others stay without effect (up = 0)."""
    add_lora(unet, setting.rank, setting.seed, parse_targets(setting.targets, "targets"))
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and is_in(name, setting.where, unet))
    chosen = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    if not chosen:
        raise ValueError(f"no parameter of a LoRA on {setting.targets} layers is in {setting.where}")
    return chosen


def is_in(name: str, where: str, network: nn.Module) -> bool:
    """True for a parameter's name in this place, of PLACES or HALVES."""
    if where in PLACES:
        return PLACES[where] in name
    block = re.match(r"transformer_blocks\.(\d+)\.", name)
    return block is not None and (2 * int(block[1]) >= len(network.transformer_blocks)) == HALVES[where]


def parameters_per_rank(unet: nn.Module, targets: str) -> int:
    """Parameters of a LoRA of rank 1 on these layers: down (1,in,kh,kw) and up (out,1) of each."""
    layers = layers_of(unet, KINDS if targets == "all" else parse_targets(targets, "targets")).values()
    return sum(layer.weight[0].numel() + layer.weight.shape[0] for layer in layers)


def equal_ranks(unet: nn.Module, choices: Sequence[str], rank: int) -> dict[str, int]:
    """Targets -> rank, such that each has about as many parameters as a LoRA on all layers of at least this rank.

    The smallest such rank of all layers for which every count is within TOLERANCE of it. InputError if there is none
    below 64.
    """
    each = {targets: parameters_per_rank(unet, targets) for targets in choices}
    whole = parameters_per_rank(unet, "all")
    for candidate in range(rank, 64):
        ranks = {targets: max(1, round(candidate * whole / count)) for targets, count in each.items()}
        if all(abs(ranks[targets] * count / (candidate * whole) - 1) <= TOLERANCE for targets, count in each.items()):
            return ranks
    raise InputError(f"no ranks at which LoRAs on {', '.join(choices)} have equally many parameters")


def states_of(base: Family, prompt: str):
    """The prompt's states, of Stable Diffusion 3 without the zeros that stand for an absent T5.

    mini-flow was pretrained with these 256 tokens and without them. Without, a training takes a fifth of the time.
    """
    states = base.encode_prompt(prompt)
    if isinstance(base, StableDiffusion3):
        states["text"] = states["text"][:, states["text"][0].any(-1)]
    return states


def falling(share: float) -> float:
    """Factor of the learning rate after this share of the steps."""
    return 1 - share


def train(
    unet: nn.Module,
    parameters: list[nn.Parameter],
    objective: SingleStep,
    latents: dict[str, Tensor],
    setting: Setting,
    recipe: Recipe,
    rate: Callable[[float], float] = falling,
    after: Callable[[], None] = lambda: None,
) -> list[float]:
    """Train in place; return the loss of each step. `after` is called when a step is done."""
    total = len(latents["rgb_mode"])
    if setting.labels > total:
        raise ValueError(f"{setting.labels} labels asked for, {total} there")
    kept = np.random.default_rng([setting.seed, total]).permutation(total)[: setting.labels]
    optimizer = torch.optim.AdamW(parameters, lr=setting.learning_rate)
    order = islice(EndlessBatches(len(kept), recipe.batch, setting.seed), recipe.steps)
    losses = []
    for step, chosen in enumerate(order):
        picked = torch.from_numpy(kept[[index for index, _ in chosen]])
        batch = {key: value[picked.to(value.device)] for key, value in latents.items()}
        optimizer.param_groups[0]["lr"] = setting.learning_rate * rate(step / recipe.steps)
        with autocast(recipe, unet.device):
            loss = objective.loss(unet, batch, generators(setting.seed, step * recipe.batch, recipe.batch))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        after()
    return losses


def autocast(recipe: Recipe, device: torch.device):
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.mixed_precision == "bf16")


def errors(
    unet: nn.Module, objective: SingleStep, data: TaskData, intrinsic: Intrinsic, recipe: Recipe
) -> list[float | None]:
    """The task's metric of every unseen image; None where it cannot be scored."""
    found, score = [], score_of(intrinsic, "diode")
    for first in range(0, len(data.unseen), 20):
        samples = data.unseen[first : first + 20]
        rgb = torch.stack([sample["rgb"] for sample in samples]).to(unet.device)
        with torch.no_grad(), autocast(recipe, unet.device):
            predictions = objective.predict(unet, rgb).float().cpu()
        scores = [score(one, sample["gt"], sample["valid"]) for one, sample in zip(predictions, samples)]
        found += [None if each is None else each[next(iter(intrinsic.scores))] for each in scores]
    return found


def probe(base: Family, data: TaskData, setting: Setting, recipe: Recipe) -> dict:
    """Train and score one setting: its parameters, first and last losses, and the error of every unseen image."""
    intrinsic = INTRINSICS[setting.task]
    unet = make_unet(base, setting)
    everything = sum(parameter.numel() for parameter in unet.parameters())
    parameters = place_lora(unet, setting)
    objective = SingleStep(base, states_of(base, intrinsic.prompt), setting.timestep)
    losses = train(unet, parameters, objective, data.latents, setting, recipe)
    trained = sum(parameter.numel() for parameter in parameters)
    return {
        "setting": asdict(setting),
        "parameters": trained,
        "share": trained / everything,
        "losses": [losses[0], float(np.mean(losses[-10:]))],
        "errors": errors(unet, objective, data, intrinsic, recipe),
    }
