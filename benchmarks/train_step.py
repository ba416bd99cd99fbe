"""One training step: the released computation and ours, interleaved in one process.

    python -m benchmarks.train_step                                   # Stable Diffusion 1.5's size, random weights
    python -m benchmarks.train_step --base miniworld/mini-sd --resolution 64 --batch 16
    python -m benchmarks.train_step --batch 4 --dtype bf16            # on a GPU

released  the paper's code (from its source): fp32, the image and the label through the VAE in
          every step, the prompt through the text encoder once per sample, attention as matrix products and a softmax
ours      latents from the cache, the prompt's states computed once, fused attention, frozen weights in --dtype, with
          the training loop's accelerator, optimiser, noise and report

Both train the same LoRA with AdamW on the same images.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable

import torch
from accelerate.state import AcceleratorState, GradientState
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from benchmarks.models import base_for, prompt_states, prompt_tokens
from benchmarks.side_by_side import compare, parser_of, set_compile
from utils.latents import moments
from utils.lora import add_lora
from utils.lora.targets import parse_targets
from utils.noise import generators
from utils.objectives import AugUNet, Objective, SingleStep, zero_snr_scheduler
from utils.system import atomic
from utils.system.compute import runs_ahead
from utils.training.args import finish, settings_of, training_parser
from utils.training.loop import attach_lora, frozen_dtype, start
from utils.training.settings import Settings
from utils.training.state import Report, TrainingState


def released_step(args: argparse.Namespace, device: str) -> Callable[[], None]:
    """The released computation, restated from a description of its code: a function that makes one step."""
    base = base_for(args, device)
    text_encoder, vae, unet = (part.to(device) for part in (base.text_encoder, base.vae, base.unet))
    unet.set_attn_processor(AttnProcessor())
    parameters = add_lora(unet, args.rank)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    rgb, target = random_images(args, device)
    tokens = prompt_tokens(text_encoder, args.batch)
    scale = vae.config.scaling_factor
    schedule = zero_snr_scheduler(base.scheduler) if args.method == "augunet" else None

    def step() -> None:
        with torch.no_grad():
            cond = vae.encode(rgb).latent_dist.mode()
            wanted = scale * vae.encode(target).latent_dist.sample()
            text = text_encoder(tokens)[0]
        t, inputs = torch.full((args.batch,), 999, device=device), scale * cond
        if schedule is not None:
            eps = torch.randn_like(wanted)
            t = torch.randint(schedule.config.num_train_timesteps, (args.batch,), device=device)
            z_t, wanted = schedule.add_noise(wanted, eps, t), schedule.get_velocity(wanted, eps, t)
            inputs = torch.cat([z_t, cond], dim=1)
        descend(nn.functional.mse_loss(unet(inputs, t, text).sample, wanted), parameters, optimizer)

    return step


def our_step(args: argparse.Namespace, device: str) -> Callable[[], float]:
    """A step as in utils/training/loop.py, with the latent cache: a function that makes one step and returns the loss
    of the last step whose loss the host has read.
    """
    settings = settings_for(args)
    AcceleratorState._reset_state()  # but not the process's: another precision than the last step's
    GradientState._reset_state()
    accelerator, _ = start(settings)
    atomic.unlock(settings.output_dir)
    base = base_for(args, device, frozen_dtype(accelerator))
    text = prompt_states(base, device, frozen_dtype(accelerator))
    lora = argparse.Namespace(rank=args.rank, seed=0, lora_targets=settings.lora_targets, lora_path=None)
    attach_lora(base, lora, accelerator)
    latents = cached_latents(base.vae, args, device)
    base.vae.to("cpu")
    base.vae.encoder = base.vae.decoder = base.text_encoder = None  # on a CPU, too, training needs neither
    if args.gradient_checkpointing:
        base.network.enable_gradient_checkpointing()
    set_compile(base.network, args.compile)
    objective: Objective = SingleStep(base, text, base.timestep())
    if args.method == "augunet":
        objective = AugUNet(base.vae, text, text, zero_snr_scheduler(base.scheduler))
    state, waiting = TrainingState(settings, accelerator, base.network, args.batch), None
    state.network.train()
    loss_read = float("nan")

    def settle() -> None:
        nonlocal waiting, loss_read
        if waiting is not None:
            loss_read, waiting = waiting.read()[0], None
            state.schedule.step()

    def step() -> float:
        nonlocal waiting
        noise = generators(0, state.seen, args.batch)
        inputs = {name: value.to(accelerator.device, non_blocking=True) for name, value in latents.items()}
        with accelerator.accumulate(state.network):
            loss = objective.loss(state.network, inputs, noise)
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(state.parameters, settings.max_grad_norm)
            settle()
            losses, rate = torch.stack([loss.detach()]), state.optimizer.param_groups[0]["lr"]
            waiting = Report(accelerator, state.step + 1, losses, norm, False, [], rate, 0.0)
            state.update(waiting.usable)
            state.step, state.seen = state.step + 1, state.seen + args.batch
        if not runs_ahead(accelerator.device.type):
            settle()
        return loss_read

    return step


def settings_for(args: argparse.Namespace) -> Settings:
    """The settings of a training run with the paper's flags, in a folder of its own that nothing is written into."""
    parser = training_parser("", {})
    parser.set_defaults(unified_prompt="", max_train_steps=20_000, report_to="none", train_batch_size=args.batch)
    parser.set_defaults(rank=args.rank, prompt="", lora_targets=",".join(parse_targets(args.lora_targets)))
    precision = {"bf16": "bf16", "fp16": "fp16"}.get(args.dtype, "no")
    words = ["--pretrained_model_name_or_path", "random", "--output_dir", tempfile.mkdtemp()]
    words += ["--mixed_precision", precision, *(["--allow_tf32"] if args.dtype == "tf32" else [])]
    parsed = parser.parse_args(words)
    finish(parser, parsed)
    return settings_of(parsed)


def cached_latents(vae: nn.Module, args: argparse.Namespace, device: str) -> dict[str, Tensor]:
    """The latents of the random images as a data loader gives them: on the CPU, pinned for a GPU; name -> (B,C,h,w).

    They are encoded one image at a time, so that no batch is too large for it.
    """
    pairs = zip(*random_images(args, device))
    each = [moments(vae, {"rgb": rgb[None], "target": target[None]}) for rgb, target in pairs]
    joined = {name: torch.cat([one[name] for one in each]) for name in each[0]}
    if device == "meta":
        return {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in joined.items()}
    return {name: value.cpu().pin_memory() if device == "cuda" else value for name, value in joined.items()}


def random_images(args: argparse.Namespace, device: str) -> Tensor:
    """rgb and target in [-1,1], (2,B,3,R,R)."""
    rng = torch.Generator().manual_seed(1)
    return (torch.rand(2, args.batch, 3, args.resolution, args.resolution, generator=rng) * 2 - 1).to(device)


def descend(loss: Tensor, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()


MAKERS = {"released": released_step, "ours": our_step}


def parser() -> argparse.ArgumentParser:
    flags = parser_of("benchmarks.train_step", __doc__)
    flags.add_argument("--gradient_checkpointing", action="store_true", help="in ours")
    flags.add_argument("--method", choices=("single", "augunet"), default="single", help="single step or diffusion")
    flags.add_argument("--base_precision", choices=("int8", "nf4"), help="linear layers of our frozen network")
    flags.add_argument("--lora_targets", default="attention", help="layers that our LoRA is on: attention or all")
    return flags


if __name__ == "__main__":
    compare(parser(), "benchmarks.train_step", MAKERS, sys.argv[1:])
