"""StyleGAN2's generator: the reference's images, public weights, folders, and a LoRA on its affine layers."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from random_weights import fill

from generators.stylegan2 import EqualLinear, StyleGAN2, blur_kernel, load_gan, save_gan
from utils.errors import InputError
from utils.lora import add_lora, fuse_lora, load_attn_procs, save_lora
from utils.lora.layers import lora_targets

SMALL = {4: 16, 8: 16, 16: 8}


def z_of(gan: StyleGAN2, count: int = 2) -> torch.Tensor:
    return torch.randn(count, gan.style_dim, generator=torch.Generator().manual_seed(7))


def rosinality(gan: StyleGAN2) -> dict:
    """A state dict as that project's training saves it: with the low passes among the weights."""
    kernel = blur_kernel(1, torch.ones(1), gain=4.0)[0, 0]
    state = dict(gan.state_dict())
    state |= {f"convs.{i}.conv.blur.kernel": kernel for i in range(0, len(gan.convs), 2)}
    return state | {f"to_rgbs.{i}.upsample.kernel": kernel for i in range(len(gan.to_rgbs))}


@pytest.fixture
def gan() -> StyleGAN2:
    torch.manual_seed(0)
    made = StyleGAN2(SMALL, style_dim=32, depth=2)
    made.load_state_dict(fill(made.state_dict()))
    return made.requires_grad_(False)


def test_pictures_are_the_references():
    """rosinality's Generator(16, 32, 3), its weights filled as here, gave these pixels (commit of 2021-12)."""
    reference = np.load(Path(__file__).parent / "stylegan2_reference.npz", allow_pickle=False)["picture"]
    made = StyleGAN2({4: 512, 8: 512, 16: 512}, style_dim=32, depth=3)
    made.load_state_dict(fill(made.state_dict()))
    with torch.no_grad():
        picture = made(made.mapping(z_of(made))).numpy()
    assert np.abs(picture - reference).max() <= 1e-5 * reference.std()


def test_public_weights_make_the_same_pictures(gan, tmp_path):
    torch.save({"g_ema": rosinality(gan), "latent_avg": torch.zeros(32)}, tmp_path / "weights.pt")
    found = load_gan(str(tmp_path / "weights.pt")).network
    assert found.channels == SMALL and found.style_dim == 32
    picture = gan(gan.mapping(z_of(gan)))
    assert torch.allclose(found(found.mapping(z_of(gan))), picture, atol=1e-4 * picture.std().item())


def test_a_folder_keeps_the_generator_in_half_precision(gan, tmp_path):
    save_gan(tmp_path / "gan", gan)
    found = load_gan(str(tmp_path / "gan")).network
    picture = gan(gan.mapping(z_of(gan)))
    assert (found(found.mapping(z_of(gan))) - picture).abs().max() < 0.02 * picture.std()


class Code:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("network.pkl", b"", "convert_weight.py"),
        ("missing.pt", None, "no such folder or .pt file"),
        ("code.pt", pickle.dumps(Code()), "not a file of tensors alone"),
        ("other.pt", {"generator": {}}, "no g_ema in it"),
        ("empty.pt", {"g_ema": {"weight": torch.zeros(3)}}, "no StyleGAN2 generator in g_ema"),
    ],
)
def test_what_is_no_generator_is_refused(name, content, says, tmp_path, capsys):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / name)
    with pytest.raises(InputError, match=says):
        load_gan(str(tmp_path / name))
    assert "run" not in capsys.readouterr().out


def test_another_low_pass_is_refused(gan, tmp_path):
    state = rosinality(gan)
    state["convs.0.conv.blur.kernel"] = torch.ones(4, 4)
    torch.save({"g_ema": state}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match="another low pass"):
        load_gan(str(tmp_path / "weights.pt"))


def test_weights_that_do_not_fit_are_refused(gan, tmp_path):
    state = rosinality(gan)
    state["convs.1.conv.weight"] = state["convs.1.conv.weight"][..., :1]
    torch.save({"g_ema": state}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match="no StyleGAN2 of this shape"):
        load_gan(str(tmp_path / "weights.pt"))


def test_folding_changes_no_picture(gan):
    before = gan(gan.mapping(z_of(gan)))
    for module in gan.modules():
        if isinstance(module, EqualLinear):
            module.fold()
    assert torch.allclose(gan(gan.mapping(z_of(gan))), before, atol=1e-4 * before.std().item())


def test_a_lora_on_the_affine_layers_is_saved_loaded_and_fused(gan, tmp_path):
    save_gan(tmp_path / "gan", gan)
    trained, loaded = (load_gan(str(tmp_path / "gan")).network for _ in range(2))
    w, plain = trained.mapping(z_of(gan)), trained(trained.mapping(z_of(gan)))
    for parameter in add_lora(trained, rank=4, targets=("affine",)):
        parameter.data.normal_(std=0.1)
    styled = len(gan.convs) + 1 + len(gan.to_rgbs) + 1
    assert sum("lora_A" in name for name, _ in trained.named_parameters()) == styled
    save_lora(trained, tmp_path / "lora", {"task": "normal"})
    assert load_attn_procs(loaded, tmp_path / "lora")["lora_targets"] == "affine"
    assert torch.equal(loaded(w), trained(w)) and not torch.allclose(trained(w), plain)
    fuse_lora(loaded)
    assert lora_targets(loaded) == ()
    assert torch.allclose(loaded(w), trained(w), atol=1e-4 * plain.std().item())


def test_each_layer_may_have_its_own_w(gan):
    w = gan.mapping(z_of(gan))
    each = w[:, None].repeat(1, gan.styles, 1)
    assert torch.equal(gan(each), gan(w))
    each[:, -1] += 1
    assert not torch.equal(gan(each), gan(w))
