"""The numbers of the paper and of its released code, as a run uses them without a flag that changes one.

Sources: the paper (arXiv 2311.17137, section 4 and appendix) and the released scripts' flags, commands and sampler.
"""

import argparse
import importlib
import runpy
import sys

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from helpers import ROOT, SCRIPTS

import inference_augunet
import inference_sd_single
from utils.base_model.stable_diffusion import load_base
from utils.objectives import AugUNet, zero_snr_scheduler
from utils.training.state import make_optimizer, make_schedule

BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class Captured(Exception):
    pass


def settings_without_flags(script: str, monkeypatch) -> tuple[argparse.Namespace, object]:
    """The flags and settings of a script that got only what it must have."""
    module = importlib.import_module(script.removesuffix(".py"))
    kept, settings_of = [], module.settings_of

    def capture(args):
        kept.append((args, settings_of(args)))
        raise Captured

    monkeypatch.setattr(module, "settings_of", capture)
    needed = ["--pretrained_model_name_or_path", str(ROOT / "miniworld" / "mini-ip2p"), "--train_data_dir", "y"]
    needed += ["--pseudo_root", "z"]
    monkeypatch.setattr("utils.training.args.check_base", lambda *_: None)  # no network in the tests
    monkeypatch.setattr("utils.training.args.check_folders", lambda *_: None)  # and no DIODE
    with pytest.raises(Captured):
        module.main(needed)
    return kept[0]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_without_flags_trains_with_the_papers_recipe(script, monkeypatch):
    """Rank 8, batch 4, AdamW at a constant 1e-4, diffusers' betas, epsilon and decay; 20,000 steps on 4,000 images in
    a single step, 50,000 on all for AugUNet: the released commands. Crops of 512, seed 1234: the released flags.
    """
    args, settings = settings_without_flags(script, monkeypatch)
    single = script.startswith("sd_single")
    assert (args.rank, args.lora_targets, args.resolution, settings.seed) == (8, "attention", 512, 1234)
    assert (settings.train_batch_size, settings.gradient_accumulation_steps) == (4, 1)
    assert settings.max_train_steps == (20_000 if single else 50_000)
    assert args.num_train_imgs == (4_000 if single else None)
    assert (settings.max_grad_norm, settings.ema_decay, args.noise_offset, args.masked_loss) == (1.0, 0, 0, False)
    assert (settings.validation_steps, settings.checkpointing_steps) == (2500, 2500)
    prompts = {"normal": "surface normal", "depth": "depth map", "albedo": "albedo", "shading": "shading"}
    assert args.prompt == prompts[SCRIPTS[script]]

    optimizer = make_optimizer(settings, [torch.nn.Parameter(torch.zeros(1))], step_samples=4)
    assert isinstance(optimizer, torch.optim.AdamW)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-4, (0.9, 0.999), 1e-8, 1e-2)
    schedule, rates = make_schedule(settings, optimizer, settings.max_train_steps), []
    for _ in range(3):
        rates += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    assert rates == [1e-4] * 3  # constant from the first step


def test_a_single_step_is_at_the_schedules_last_timestep(bases):
    """T-1 = 999, in training and inference of the released code."""
    assert load_base(str(bases["sd15"])).timestep() == 999


def test_augunet_samples_with_the_released_solver_and_numbers():
    """DPM-Solver++ of order 2, midpoint, 25 steps on a schedule with zero terminal SNR (arXiv 2305.08891) and trailing
    timesteps; guidance 3.0, rescaled by 0.7: against the same written out here with numbers.
    """
    generator = torch.Generator().manual_seed(0)
    noise, cond = torch.randn(2, 1, 4, 8, 8, generator=generator)
    empty, prompt = torch.zeros(1, 77, 8), torch.ones(1, 77, 8)

    class Network(torch.nn.Module):
        """Not linear, so that no other solver, step count or guidance has the same result."""

        def forward(self, x, t, text):
            z, image = x.chunk(2, dim=1)
            self.sample = torch.sin(z * (2 + t / 400)) + 0.3 * image + 0.5 * text.mean((1, 2)).view(-1, 1, 1, 1) * z
            return self

    base = DDIMScheduler(**BETAS, prediction_type="epsilon", timestep_spacing="leading")
    ours = AugUNet(None, prompt, empty, zero_snr_scheduler(base)).latents(Network(), cond, noise)

    kind = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    solver = DPMSolverMultistepScheduler(
        **BETAS, **kind, solver_order=2, solver_type="midpoint", algorithm_type="dpmsolver++"
    )
    solver.set_timesteps(25)
    z, network = noise * solver.init_noise_sigma, Network()
    for t in solver.timesteps:
        image_only, both = (network(torch.cat([z, cond], 1), t, text).sample for text in (empty, prompt))
        guided = image_only + 3.0 * (both - image_only)
        z = solver.step(0.7 * guided * both.std() / guided.std() + 0.3 * guided, t, z).prev_sample
    torch.testing.assert_close(ours, z, atol=1e-4, rtol=1e-4)


def test_augunet_inference_samples_like_the_released_validation():
    """25 steps, guidance 3.0 without a flag; seed 1234 is the training scripts'."""
    args = inference_augunet.parse([])
    assert (args.steps, args.guidance_scale, args.seed, args.ensemble_size) == (25, 3.0, 1234, 1)
    assert args.augment_from is None  # InstructPix2Pix's own, or the LoRA's


def test_single_step_inference_is_at_the_trainings_timestep():
    """T-1 without a flag of the training: what the LoRA's header states, else the schedule's last."""
    assert (
        inference_sd_single.parse([]).timestep is None
        and inference_sd_single.parse(["--timestep", "400"]).timestep == 400
    )


@pytest.mark.parametrize("command", ["train", "predict"])
def test_minimal_without_flags_is_the_papers_single_step(command, monkeypatch):
    parse_args = argparse.ArgumentParser.parse_args

    def capture(parser, *words):
        raise Captured(parse_args(parser, *words))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", capture)
    needed = ["--labels", "y"] if command == "train" else ["--lora", "y"]
    monkeypatch.setattr(sys, "argv", ["minimal.py", command, "--images", "x", "--out", "z", *needed])
    with pytest.raises(Captured) as caught:
        runpy.run_path(str(ROOT / "minimal.py"), run_name="__main__")
    args = caught.value.args[0]
    assert (args.prompt, args.timestep, args.size) == ("surface normal", 999, 512)
    if command == "train":
        assert (args.steps, args.batch, args.rank, args.lr, args.seed) == (20_000, 4, 8, 1e-4, 1234)
