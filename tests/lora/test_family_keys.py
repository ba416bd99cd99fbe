"""Keys of LoRA files for transformers: what the family's pipeline reads, this project reads as the same weights."""

import re

import diffusers
import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file, save_file
from tiny_families import pipeline

from utils.base_model.families import open_base
from utils.errors import InputError
from utils.lora import add_lora, load_attn_procs, save_lora
from utils.lora.__main__ import describe, main
from utils.lora.layers import layers_of

TEXT = {"sdxl": (1, 7, 64), "flux2": (1, 7, 48), "qwen_image": (1, 7, 16), "z_image": (7, 16)}
Z = {"sdxl": (1, 4, 8, 12), "flux2": (1, 16, 4, 6), "qwen_image": (1, 4, 8, 12), "z_image": (1, 16, 8, 12)}
KOHYA_NAMES = {"sdxl": r"lora_unet_((input|output)_blocks_\d_|middle_block_|time_embed_|label_emb_)"}  # sd-scripts'
KINDS = ("attention", "feedforward", "projection", "conv", "time", "modulation")
FLUX2_BLOCKS = {  # its authors' layers: kind of block, name, inputs and outputs in the tiny model
    ("double", "img_attn.qkv"): (32, 96), ("double", "txt_attn.qkv"): (32, 96), ("double", "img_attn.proj"): (32, 32),
    ("double", "txt_attn.proj"): (32, 32), ("double", "img_mlp.0"): (32, 192), ("double", "img_mlp.2"): (96, 32),
    ("double", "txt_mlp.0"): (32, 192), ("double", "txt_mlp.2"): (96, 32), ("single", "linear1"): (32, 288),
    ("single", "linear2"): (128, 32),
}  # fmt: skip


@pytest.fixture
def reads(family, tiny):
    """A file -> the network's output with it, as loaded by the pipeline and by this project, and without it."""
    base, pipe = open_base(str(tiny(family))), pipeline(tiny(family))
    network = pipe.unet if family == "sdxl" else pipe.transformer
    generator = torch.Generator().manual_seed(1)
    states = {
        "text": torch.randn(TEXT[family], generator=generator),
        "pooled": torch.randn(1, 32 if family == "sdxl" else 64, generator=generator),
    }
    z, time = torch.randn(Z[family], generator=generator), 400 if family == "sdxl" else 0.4

    @torch.no_grad()
    def outputs(file) -> tuple[torch.Tensor, ...]:
        plain = base.predict(network, z, time, states)
        pipe.load_lora_weights(str(file.parent), weight_name=file.name)
        theirs = base.predict(network, z, time, states)
        pipe.unload_lora_weights()
        load_attn_procs(network, file)
        ours = base.predict(network, z, time, states)
        network.unload_lora()
        return theirs, ours, plain

    return outputs


@pytest.fixture
def saved(family, tiny, tmp_path):
    """A LoRA of this project, on the kinds of layers that kohya's keys can name."""
    network, folder = open_base(str(tiny(family))).network, tmp_path / "ours"
    kinds = [kind for kind in KINDS if layers_of(network, (kind,))]
    if family == "sdxl" and Version(diffusers.__version__) < Version("0.36"):
        kinds.remove("time")  # `convert` warns that 0.35 refuses kohya's names of it
    add_lora(network, 4, targets=kinds)
    torch.manual_seed(2)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return save_lora(network, folder, {"family": family, "task": "normal"})


def assert_read(outputs) -> None:
    theirs, ours, plain = outputs
    assert (theirs - plain).abs().max() > 0.01, "the pipeline loaded nothing"
    assert torch.allclose(theirs, ours, atol=1e-5)


@pytest.mark.parametrize("family", ["sdxl", "qwen_image", "z_image"])
def test_kohyas_keys_are_written_for_the_pipelines_that_read_them(family, reads, saved, tmp_path):
    kohya = tmp_path / "kohya.safetensors"
    main(["convert", str(saved), str(kohya), "--format", "kohya"])
    assert all(re.match(KOHYA_NAMES.get(family, "lora_unet_"), key) for key in load_file(kohya))
    outputs = reads(kohya)
    assert_read(outputs)
    assert torch.allclose(outputs[0], reads(saved)[0], atol=1e-5)
    main(["convert", str(kohya), str(tmp_path / "back.safetensors"), "--format", "peft"])
    back, first = load_file(tmp_path / "back.safetensors"), load_file(saved)
    assert back.keys() == first.keys() and all(torch.equal(back[key], first[key]) for key in first)


@pytest.mark.parametrize("family", ["sd3", "flux2"])
def test_kohyas_keys_are_not_written_where_no_pipeline_would_read_them(family, saved, tmp_path):
    with pytest.raises(InputError, match=f"this LoRA is of {family}; use peft keys"):
        main(["convert", str(saved), str(tmp_path / "kohya.safetensors"), "--format", "kohya"])
    assert not (tmp_path / "kohya.safetensors").exists()


@pytest.mark.parametrize("family", ["flux2", "qwen_image", "z_image"])
def test_ai_toolkits_keys_are_read_as_the_pipeline_reads_them(family, reads, saved, tmp_path):
    state = {key.replace("transformer.", "diffusion_model.", 1): value for key, value in load_file(saved).items()}
    if family == "flux2":  # its converter knows the blocks alone by these names
        state = {key: value for key, value in state.items() if "blocks" in key}
        save_file(state, tmp_path / "toolkit.safetensors")
    else:
        main(["convert", str(saved), str(tmp_path / "toolkit.safetensors"), "--format", "ai-toolkit"])
        assert load_file(tmp_path / "toolkit.safetensors").keys() == state.keys()
    assert describe(tmp_path / "toolkit.safetensors")["format"] == "ai-toolkit"
    assert_read(reads(tmp_path / "toolkit.safetensors"))


@pytest.mark.parametrize("family", ["flux2"])
@pytest.mark.parametrize("form", ["ai-toolkit", "kohya"])
def test_the_names_of_flux2s_authors_are_read_as_the_pipeline_reads_them(family, form, reads, tmp_path):
    generator, state = torch.Generator().manual_seed(3), {}
    for (kind, layer), (inputs, outputs) in FLUX2_BLOCKS.items():
        down, up = torch.randn(4, inputs, generator=generator) / 4, torch.randn(outputs, 4, generator=generator) / 9
        for number in (0, 1):
            name = f"{kind}_blocks.{number}.{layer}"
            if form == "kohya":
                name = "lora_unet_" + name.replace(".", "_")
                state |= {f"{name}.lora_down.weight": down.clone(), f"{name}.lora_up.weight": up.clone()}
                state[f"{name}.alpha"] = torch.tensor(2.0)
            else:
                name = f"diffusion_model.{name}"
                state |= {f"{name}.lora_A.weight": down.clone(), f"{name}.lora_B.weight": up.clone()}
    save_file(state, tmp_path / "theirs.safetensors")
    assert_read(reads(tmp_path / "theirs.safetensors"))
    facts = describe(tmp_path / "theirs.safetensors")
    assert facts["format"] == form and facts["targets"] == "attention,feedforward" and facts["linears"] == 28
    main(["convert", str(tmp_path / "theirs.safetensors"), str(tmp_path / "peft.safetensors"), "--format", "peft"])
    assert_read(reads(tmp_path / "peft.safetensors"))


@pytest.mark.parametrize(("name", "base"), [
    ("transformer.single_transformer_blocks.0.attn.to_out", "FLUX.2"),
    ("transformer.transformer_blocks.0.ff.linear_in", "FLUX.2"),
    ("diffusion_model.layers.0.attention.to_q", "Z-Image"),
    ("transformer.transformer_blocks.0.txt_mlp.net.2", "Qwen-Image"),
    ("transformer.transformer_blocks.0.attn2.to_q", "Stable Diffusion 3"),
    ("transformer.transformer_blocks.0.attn.to_q", "a transformer: Stable Diffusion 3 or Qwen-Image"),
])  # fmt: skip
def test_inspect_recognises_a_transformer_by_its_layers_and_by_its_header(name, base, tmp_path):
    state = {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(8, 2)}
    save_file(state, tmp_path / "a.safetensors")
    assert describe(tmp_path / "a.safetensors")["fits"] == base
    save_file(state, tmp_path / "b.safetensors", {"family": "sd3"})
    assert describe(tmp_path / "b.safetensors")["fits"] == "the family sd3, by its header"


def test_inspect_recognises_sdxl_by_its_text(tmp_path):
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    state = {f"{name}.lora_A.weight": torch.ones(2, 2048), f"{name}.lora_B.weight": torch.ones(640, 2)}
    save_file(state, tmp_path / "a.safetensors")
    assert describe(tmp_path / "a.safetensors")["fits"] == "Stable Diffusion XL (text width 2048)"
