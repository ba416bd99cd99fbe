"""Loads LoRA files with one version of diffusers, by its own calls; runs inside the temporary environments.

    python probe.py CASES OUT.json        load every file in CASES by every call this diffusers has
    python probe.py CASES OUT --train     train a LoRA for two steps the way of 2023 (diffusers 0.20) and save it

It uses nothing of this project, only networks, inputs and LoRA folders. "ok" means that the output equals
that of the same network with up @ down added into its weights by hand, to 1e-5 of the output's scale.
"""

import copy
import json
import sys
from functools import partial
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file

TOLERANCE = 1e-5
SAFETENSORS, BIN = "pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"


def load_unet(cases: Path) -> UNet2DConditionModel:
    """A fresh UNet: built from its options, for old versions cannot read new versions' folders."""
    unet = UNet2DConditionModel(**json.loads((cases / "unet.json").read_text()))
    unet.load_state_dict(load_file(cases / "unet.safetensors"))
    return unet.eval()


def forward(unet, cases: Path) -> torch.Tensor:
    """The UNet's output for the fixed inputs; a widened UNet also reads the latents in reverse order."""
    inputs = load_file(cases / "inputs.safetensors")
    z = inputs["z"] if unet.conv_in.in_channels == 4 else torch.cat([inputs["z"], inputs["z"].flip(0)], dim=1)
    with torch.no_grad():
        return unet(z, 999, inputs["text"]).sample


def widen(unet, folder: Path):
    """Put the conv_in.safetensors of an AugUNet's LoRA into `unet`, as described in the model card."""
    state = load_file(folder / "conv_in.safetensors")
    unet.conv_in = torch.nn.Conv2d(*state["weight"].shape[1::-1], 3, padding=1)
    unet.conv_in.load_state_dict(state)
    return unet


def augunet_outputs(cases: Path, name: str):
    """(widened UNet's output without the LoRA in the folder `name`, with the LoRA merged by hand)."""
    folder = cases / name
    merged = widen(load_unet(cases), folder)
    base = forward(merged, cases)
    merge_by_hand(merged, load_file(folder / SAFETENSORS))
    return base, forward(merged, cases)


def merged_outputs(cases: Path) -> dict:
    """Output with the trainer's LoRA on attention merged by hand, and with the one on all layers ("all-peft")."""
    outputs = {}
    for name in ("diffusers", "all-peft"):
        merged = load_unet(cases)
        merge_by_hand(merged, load_file(cases / "files" / name / SAFETENSORS))
        outputs[name] = forward(merged, cases)
    return outputs


def expected_of(outputs: dict, folder: Path) -> torch.Tensor:
    """Which of `merged_outputs` a folder's LoRA must give."""
    return outputs["all-peft" if folder.name.startswith("all-") else "diffusers"]


def merge_by_hand(network, state) -> None:
    """W += up @ down, with a convolution's kernel and inputs as the columns of down, for the trainer's two formats:
    keys `unet.<layer>.processor.<target>_lora.<down|up>.weight` and `<unet|transformer>.<layer>.lora_<A|B>.weight`.
    """
    with torch.no_grad():
        for key in [key for key in state if ".lora_A." in key or ".down." in key]:
            name = key.partition(".")[2].replace(".processor.", ".").replace("to_out_lora", "to_out.0_lora")
            layer = network.get_submodule(name.replace(".lora_A.weight", "").replace("_lora.down.weight", ""))
            up = state[key.replace(".down.", ".up.").replace(".lora_A.", ".lora_B.")]
            layer.weight += (up.flatten(1) @ state[key].flatten(1)).reshape(layer.weight.shape)


def pipeline(unet) -> StableDiffusionPipeline:
    """The least pipeline that has `load_lora_weights`: this LoRA concerns the UNet alone."""
    vae = AutoencoderKL(block_out_channels=(32,), norm_num_groups=32)
    parts = {"text_encoder": None, "tokenizer": None, "safety_checker": None, "feature_extractor": None}
    return StableDiffusionPipeline(
        vae=vae, unet=unet, scheduler=DDIMScheduler(), requires_safety_checker=False, **parts
    )


def read_bin(folder: Path):
    return torch.load(folder / BIN, map_location="cpu")


CALLS = {
    "attn_procs_dict": lambda unet, folder: unet.load_attn_procs(read_bin(folder)),
    "attn_procs_folder": lambda unet, folder: unet.load_attn_procs(str(folder)),
    "pipe": lambda unet, folder: pipeline(unet).load_lora_weights(str(folder)),
    "adapter": lambda unet, folder: unet.load_lora_adapter(
        read_bin(folder), prefix=None if folder.name == "released" else "unet"
    ),
}


def judge(network, call, folder: Path, run, base: torch.Tensor, expected: torch.Tensor) -> dict:
    """Load, run, compare: {"status": ok, no-op, wrong, absent or error, ...}. run: the network -> its output."""
    try:
        call(network, folder)
    except Exception as error:
        missing = isinstance(error, AttributeError) and "load_lora_adapter" in str(error)
        text = " ".join(str(error).split())[:300]
        return {"status": "absent" if missing else "error", "error": type(error).__name__, "message": text}
    output = run(network)
    difference = ((output - expected).abs().max() / expected.abs().max()).item()
    moved = ((output - base).abs().max() / base.abs().max()).item()
    status = "ok" if difference <= TOLERANCE else "no-op" if moved <= TOLERANCE else "wrong"
    return {"status": status, "difference": difference, "moved": moved}


def probe(cases: Path) -> dict:
    base, outputs = forward(load_unet(cases), cases), merged_outputs(cases)
    effect = min(((output - base).abs().max() / base.abs().max()).item() for output in outputs.values())
    if not effect > 1000 * TOLERANCE:
        raise SystemExit(f"these LoRAs move the output by {effect:.1e} of its scale only: they could prove nothing")
    results, run = {"effect": effect, "calls": {}}, partial(forward, cases=cases)
    for name, call in CALLS.items():
        for folder in sorted((cases / "files").iterdir()):
            found = judge(load_unet(cases), call, folder, run, base, expected_of(outputs, folder))
            results["calls"][f"{name} {folder.name}"] = found
    for name in ("augunet", "augunet-all"):
        widened = widen(load_unet(cases), cases / name)
        found = judge(widened, CALLS["pipe"], cases / name, run, *augunet_outputs(cases, name))
        results["calls"][f"{name} pipe"] = found
    for place in sorted((cases / "families").iterdir()):
        results["calls"] |= probe_family(place)
    return results


def probe_family(place: Path) -> dict:
    """The LoRAs in `place`/files in the pipeline in `place`/base, by "<family> <files' name>".

    The network runs on the arguments in `place`/inputs.pt, which are those of this project's prediction.
    """
    folders = sorted((place / "files").iterdir())
    parts = json.loads((place / "base" / "model_index.json").read_text())
    # no text: these LoRAs concern the network alone, and old releases cannot read new tokenizers
    text = ("text_encoder", "tokenizer")
    absent = {part: None for part, kind in parts.items() if part.startswith(text) or kind == [None, None]}
    try:
        pipe = DiffusionPipeline.from_pretrained(place / "base", **absent)
    except AttributeError as error:  # this release has no such pipeline
        return {f"{place.name} {folder.name}": {"status": "absent", "message": str(error)} for folder in folders}
    part = "unet" if hasattr(pipe, "unet") else "transformer"
    network, inputs = getattr(pipe, part).eval(), torch.load(place / "inputs.pt")

    def run(network) -> torch.Tensor:
        with torch.no_grad():
            output = network(**inputs, return_dict=False)[0]
        return output if torch.is_tensor(output) else torch.stack(output)

    def load(network, folder: Path) -> None:
        setattr(pipe, part, network)
        pipe.load_lora_weights(str(folder), weight_name=SAFETENSORS)

    try:
        base, found = run(network), {}
    except TypeError as error:  # its network takes other arguments than today's
        return {f"{place.name} {folder.name}": {"status": "absent", "message": str(error)} for folder in folders}
    for folder in folders:
        merged = copy.deepcopy(network)
        merge_by_hand(merged, load_file(place / "files" / folder.name.partition("-")[0] / SAFETENSORS))
        expected = run(merged)
        if not (expected - base).abs().max() > 1000 * TOLERANCE * base.abs().max():
            raise SystemExit(f"{folder}: this LoRA changes too little to prove anything")
        found[f"{place.name} {folder.name}"] = judge(copy.deepcopy(network), load, folder, run, base, expected)
    return found


def train(cases: Path, out: Path) -> None:
    """Two steps as the training scripts of 2023 made them; written by `save_attn_procs` and by accelerate."""
    from accelerate import Accelerator
    from diffusers.loaders import AttnProcsLayers
    from diffusers.models.attention_processor import LoRAAttnProcessor

    torch.manual_seed(5)
    unet, inputs = load_unet(cases), load_file(cases / "inputs.safetensors")
    unet.requires_grad_(False)
    channels = unet.config.block_out_channels
    processors = {}
    for name in unet.attn_processors:
        block = int(name.split("_blocks.")[1][0]) if "_blocks." in name.split("attentions")[0] else -1
        width = channels[::-1][block] if name.startswith("up") else channels[block]
        text_width = None if name.endswith("attn1.processor") else unet.config.cross_attention_dim
        processors[name] = LoRAAttnProcessor(hidden_size=width, cross_attention_dim=text_width, rank=4)
    unet.set_attn_processor(processors)
    layers = AttnProcsLayers(unet.attn_processors)
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(layers.parameters(), lr=3e-2)
    layers, optimizer = accelerator.prepare(layers, optimizer)
    for _ in range(2):
        loss = torch.nn.functional.mse_loss(unet(inputs["z"], 999, inputs["text"]).sample, inputs["target"])
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    accelerator.save_state(str(out / "accelerate"))
    unet.save_attn_procs(str(out / "safetensors"), safe_serialization=True)
    unet.save_attn_procs(str(out / "bin"), safe_serialization=False)
    base = forward(load_unet(cases), cases)
    save_file({"output": forward(unet, cases).contiguous(), "base": base.contiguous()}, out / "output.safetensors")


if __name__ == "__main__":
    cases, out = Path(sys.argv[1]), Path(sys.argv[2])
    if sys.argv[3:] == ["--train"]:
        out.mkdir(parents=True, exist_ok=True)
        train(cases, out)
    else:
        out.write_text(json.dumps(probe(cases), indent=1))
