"""`python -m utils.base_model check PATH`: is a base model read here as its own diffusers pipeline reads it?

Everything is compared with the pipeline that model_index.json names, on one small image, in fp32 on the CPU. For a
model of your own, and for a new family: docs/extending.md. Nothing is written but the prompt's states.
"""

import inspect
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from utils.base_model.families import open_base
from utils.base_model.names import FAMILIES
from utils.base_model.parts import Family
from utils.cli import Parser
from utils.errors import one_line, run
from utils.lora import SAFETENSORS, add_lora, fuse_lora, load_attn_procs, lora_parameters, save_lora
from utils.lora.layers import layers_of
from utils.lora.targets import KINDS

PROMPT, RANK = "surface normal", 4
ROUNDING = 1e-4  # a difference that rounding in fp32 explains, as a part of the values' own deviation
NAMES = ("input", "latents", "identity", "gradients", "file", "fused")
Check = tuple[str, bool, str]  # its name, whether it is passed, the figures


def checks(base: Family) -> Iterator[Check]:
    """All checks of a base model that was just opened, in an order in which each can be made. The network has other
    weights afterwards.
    """
    network, image = base.network, drawn(base.multiple * max(1, 32 // base.multiple))
    with torch.no_grad():
        z, states = base.scaled(base.latent_mode(image)), base.encode_prompt(PROMPT)
        pipeline = pipeline_of(base)

        def ours(t: float) -> dict[str, Any]:
            return reaching(network, lambda: base.predict(network, z, t, states))

        theirs = reaching(network, lambda: generate(pipeline, z, ours(base.timestep()), image))
        steps = pipeline.scheduler.timesteps[0].item()
        t = int(steps) if base.steps else steps / 1000
        wrong, names = ", ".join(unequal(ours(t), theirs, "")), ", ".join(theirs)
        figures = f"differs from the pipeline's in {wrong}" if wrong else f"is the pipeline's: {names}"
        yield "input", not wrong, f"what reaches the network at t = {t:g} {figures}"

        pipeline.scheduler.step = lambda output, t, latents, **options: (latents,)  # it ends where it begins
        decoded = generate(pipeline, z / getattr(pipeline.scheduler, "init_noise_sigma", 1), ours(t), image)
        back = base.decode(z)
        off, psnr = difference((back / 2 + 0.5).clamp(0, 1), decoded), -10 * (mse_loss(back, image) / 4).log10().item()
        yield "latents", off < ROUNDING, f"decode(encode(image)) is {off:.1g} off the pipeline's, PSNR {psnr:.1f} dB"

    def predict() -> Tensor:
        return base.predict(network, z, base.timestep(), states)

    with torch.no_grad():
        plain = predict()
    add_lora(network, RANK, targets=[kind for kind in KINDS if layers_of(network, (kind,))])
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield "identity", torch.equal(predict(), plain), "a new LoRA leaves the output as it is, bit for bit"
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)

    changed = predict()
    (changed - z).square().mean().backward()
    yield gradients(network, predict, changed.detach())

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save_lora(network, folder, {})
        effect = difference(changed, plain)
        network.unload_lora()
        pipeline.load_lora_weights(folder, weight_name=SAFETENSORS)
        off = difference(predict(), changed)
        figures = f"loaded by the pipeline, the output is {off:.1g} off; the LoRA changes it by {effect:.1g}"
        yield "file", off < ROUNDING * effect, figures
        pipeline.unload_lora_weights()
        load_attn_procs(network, folder)
        fuse_lora(network)
        off = difference(predict(), changed)
        yield "fused", off < 0.01 * effect, f"merged into the weights, the output is {off:.1g} off"


def gradients(network: nn.Module, predict: Callable[[], Tensor], output: Tensor) -> Check:
    """Every LoRA tensor has a gradient, but those on layers that do not reach the output, which are named."""
    silent = {
        name.partition(".lora_")[0]
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    }
    without, dead = len(silent), []
    for name in sorted(silent):
        layer = network.get_submodule(name)
        with layer.register_forward_hook(lambda module, args, out: out * 2 + 1), torch.no_grad():
            if torch.equal(predict(), output):
                dead.append(name)
    missed = sorted(silent.difference(dead))
    count = len(lora_parameters(network))
    figure = f"{count - 2 * without} of {count} LoRA tensors have one"
    figure += f"; not the layers whose output nothing reads: {', '.join(dead)}" if dead else ""
    return "gradients", not missed, figure + (f"; MISSING: {', '.join(missed)}" if missed else "")


def drawn(side: int) -> Tensor:
    """A disc on a gradient, (1,3,2*side,3*side) in [-1,1]: rows and columns differ."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 2 * side), torch.linspace(-1, 1, 3 * side), indexing="ij")
    disc = (rows**2 + columns**2 < 0.3).float()
    return torch.stack([rows, columns, 2 * disc - 1]).mul(0.8)[None]


def pipeline_of(base: Any) -> Any:
    """The base's own pipeline around the base's own VAE and network."""
    if base.family != "sd":
        pipeline = base._pipeline()
    else:
        parts = {name: getattr(base, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
        pipeline = diffusers.StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline: Any, z: Tensor, ours: dict[str, Any], image: Tensor) -> Tensor:
    """One step of the pipeline without guidance, from z in the place of noise: an image (1,3,H,W) in [0,1]."""
    height, width = image.shape[2:]
    inputs = [ours["hidden_states"]] if "hidden_states" in ours else []  # some take the network's tokens instead of z
    for latents in (z, *inputs):
        try:
            return pipeline(
                prompt=PROMPT, height=height, width=width, latents=latents, num_inference_steps=1, guidance_scale=0.0,
                output_type="pt",
            ).images  # fmt: skip
        except (RuntimeError, ValueError) as error:
            reason = error
    raise reason


def reaching(network: nn.Module, call: Callable[[], object]) -> dict[str, Any]:
    """The arguments, by name, of the network's last call in `call`, without the empty ones."""
    calls: list[dict] = []

    def spy(module: nn.Module, args: tuple, kwargs: dict) -> None:
        calls.append(inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments)

    with network.register_forward_pre_hook(spy, with_kwargs=True):
        call()
    arguments = {name: value for name, value in calls[-1].items() if name not in ("self", "return_dict")}
    return {name: value for name, value in arguments.items() if isinstance(value, Tensor) or value not in (None, {})}


def unequal(ours: Any, theirs: Any, name: str) -> list[str]:
    """The names of all values in `theirs` that `ours` lacks or has otherwise, and of those that it has in addition."""
    if isinstance(theirs, Tensor) and isinstance(ours, Tensor):
        ours = ours.reshape(theirs.shape) if ours.numel() == theirs.numel() == 1 else ours  # one time for all images
        return [] if ours.shape == theirs.shape and difference(ours, theirs) < ROUNDING else [name]
    if isinstance(theirs, (list, tuple)) and isinstance(ours, (list, tuple)) and len(ours) == len(theirs):
        return [wrong for one, other in zip(ours, theirs) for wrong in unequal(one, other, name)]
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return [wrong for key in sorted(ours | theirs) for wrong in unequal(ours.get(key), theirs.get(key), key)]
    return [] if not isinstance(ours, Tensor) and not isinstance(theirs, Tensor) and ours == theirs else [name]


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference, as a part of the other's largest value."""
    return ((one.float() - other.float()).abs().max() / other.float().abs().max().clamp(min=1e-6)).item()


def memory(base: Family) -> str:
    """The weights' size, and what a LoRA of RANK adds in training: fp32 weights, gradients and AdamW's two moments."""
    sizes = [sum(weight.numel() for weight in part.parameters()) for part in (base.network, base.vae)]
    lora = sum(weight.numel() for weight in lora_parameters(base.network))
    return (
        f"{2 * sum(sizes) / 2**30:.2f} GiB of frozen weights in bf16 (network {sizes[0] / 1e6:,.1f} M, VAE "
        f"{sizes[1] / 1e6:,.1f} M)" + (f", training a LoRA of rank {RANK} {16 * lora / 2**30:.3f} GiB" if lora else "")
    )


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m utils.base_model", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="compare a base model as it is read here with its own pipeline")
    check.add_argument("base", metavar="PATH", help="a model folder, a hub name, or a Stable Diffusion in one file")
    check.add_argument("--revision", help="revision of a model on the hub")
    args = parser.parse_args(argv)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
    base = open_base(args.base, args.revision)
    kind = type(base.network).__name__
    print(f"{base.name}: {FAMILIES[base.family]}, {kind}, sides in multiples of {base.multiple}, times {base.times}")
    found, failed = checks(base), []
    for name in NAMES:
        try:
            name, passed, figures = next(found)
        except Exception as error:  # whatever an adapter that is wrong, or a pipeline that it does not fit, may raise
            reason = " ".join(str(error).split())[:300]
            print(f"  FAIL  {name:<9}  {type(error).__name__}: {one_line(reason)}; the checks after it were not made")
            failed.append(name)
            break
        failed += [] if passed else [name]
        print(f"  {'pass' if passed else 'FAIL'}  {name:<9}  {one_line(figures)}", flush=True)
        if name == "identity":
            print(f"        {'memory':<9}  {memory(base)}")
    if failed:
        print(f"next: fix {', '.join(failed)} in utils/base_model/ before training on it; docs/extending.md says how")
    else:
        print(f"next: python sd_single_diode_pseudo_normal.py --pretrained_model_name_or_path={args.base} ...")
    return int(bool(failed))


if __name__ == "__main__":
    run(main)
