"""Every method's loss through what libraries wrap networks in, and names that do not depend on it."""

import copy
import os

import pytest
import torch
from accelerate.utils import compile_regions
from helpers import around, lora
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from generators.pixel_prediction import PixelPrediction, digest
from generators.stylegan2 import load_gan
from generators.token_prediction import TokenPrediction
from generators.transformer import load_autoregressive
from miniworld.pretraining.random_sd import build_scheduler, build_unet, build_vae
from utils.lora import add_lora, load_attn_procs, lora_state, save_lora
from utils.lora.keys import strip_wrappers
from utils.lora.layers import unwrap
from utils.noise import generators
from utils.objectives import AugUNet, SingleStep, zero_snr_scheduler
from utils.system.compute import as_written

PROMPT = torch.full((1, 77, 64), 0.5)
METHODS = ["single step", "augunet", "one by one", "at once", "gan"]


@pytest.fixture(scope="module")
def group():
    """A real process group of one process."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
    del os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]


def wrapped(kind: str, network: nn.Module) -> nn.Module:
    if kind == "regions":
        return compile_regions(network, backend="eager")
    if "compile" in kind and not kind.endswith("compile"):
        network = torch.compile(network, backend="eager")
    network = DistributedDataParallel(network) if "ddp" in kind else network
    return torch.compile(network, backend="eager") if kind.endswith("compile") else network


def method(name: str, gan_folder, ar_folder):
    """An objective, its network with a LoRA that does something, and a batch."""
    rgb, target = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    batch, targets = {"rgb": rgb, "target": target}, ("self_attention",)
    torch.manual_seed(0)
    if name == "gan":
        network, w = load_gan(str(gan_folder)).network, torch.randn(2, 32)
        objective, targets = PixelPrediction(dict(zip(map(digest, rgb), w, strict=True))), ("affine",)
        batch = {"rgb": rgb, "w": w, "target": target[..., :16, :16]}
    elif name in ("one by one", "at once"):
        base = load_autoregressive(str(ar_folder))
        network, objective = base.network, TokenPrediction(base.tokens, decoding=name.replace(" ", "_"))
    else:
        vae = build_vae().eval().requires_grad_(False)
        network, targets = build_unet(in_channels=8 if name == "augunet" else 4), ("attention",)
        scheduler = zero_snr_scheduler(build_scheduler("v_prediction"))
        objective = (
            AugUNet(vae, PROMPT, PROMPT, scheduler) if name == "augunet" else SingleStep(around(vae), PROMPT, 400)
        )
    add_lora(network, 2, 0, targets)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1)
    return objective, network, batch


@pytest.mark.parametrize("kind", ["compile", "ddp", "ddp, compile", "compile, ddp"])
@pytest.mark.parametrize("name", METHODS)
def test_a_loss_goes_through_wrappers_and_saving_around_them(name, kind, gan_folder, ar_folder, group, tmp_path):
    objective, network, batch = method(name, gan_folder, ar_folder)
    noise = lambda: generators(0, 0, 2)  # noqa: E731
    plain, keys = objective.loss(network, batch, noise()), lora_state(network)
    outer = wrapped(kind, network)
    with as_written():  # torch.compile's wrapper without its minutes of tracing
        loss = objective.loss(outer, batch, noise())
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters() if p.requires_grad)
    assert unwrap(outer) is network
    save_lora(outer, tmp_path, {})
    saved = lora(tmp_path)
    assert set(saved) == set(keys) and all(torch.equal(saved[key], keys[key]) for key in keys)
    with torch.no_grad():
        assert torch.isfinite(objective.predict(unwrap(outer), batch["rgb"], noise())).all()


def test_keys_do_not_depend_on_compiled_parts(tmp_path):
    network = build_unet()
    add_lora(network, 2)
    keys = lora_state(network)
    copied = copy.deepcopy(network)
    copied.down_blocks[0].attentions[0] = torch.compile(copied.down_blocks[0].attentions[0], backend="eager")
    assert "_orig_mod" in "".join(name for name, _ in copied.named_parameters())
    for other in (copied, wrapped("regions", network)):
        save_lora(other, tmp_path, {})
        assert set(lora(tmp_path)) == set(keys)
    load_attn_procs(network, tmp_path)


def test_a_key_that_no_loader_reads_is_never_written(tmp_path):
    class Holder(nn.Module):
        def __init__(self, inside):
            super().__init__()
            self._some_wrapper = inside

    network = build_unet()
    add_lora(network, 2)
    with pytest.raises(ValueError, match=r"_some_wrapper\S+: not a plain path"):
        save_lora(Holder(network), tmp_path, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("key", "plain"), [
    ("unet._orig_mod.mid_block.x", "unet.mid_block.x"),
    ("module._orig_mod.a.module.b", "a.b"),
    ("a._fsdp_wrapped_module.b", "a.b"),
    ("a.submodule.b", "a.submodule.b"),
    ("module_a.my_orig_mod.b", "module_a.my_orig_mod.b"),
])  # fmt: skip
def test_only_whole_parts_of_a_path_are_wrappers(key, plain):
    assert strip_wrappers(key) == plain
