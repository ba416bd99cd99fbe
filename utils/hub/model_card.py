"""README.md of a LoRA's hub repository: what it predicts, how well, and how each ecosystem loads it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.errors import one_line
from utils.hub.names import licence_of
from utils.kinds.base import higher_is_better
from utils.lora import BIN, CONV_IN, SAFETENSORS

CONVENTIONS = ("frame", "polarity", "colour_space")  # metadata that says what a value means


def model_card(
    repo_id: str,
    metadata: Mapping[str, object],
    scores: Mapping[str, float],
    protocol: str,
    panels: Sequence[str],
) -> str:
    """metadata: as in the LoRA's header. scores: "val/<split>/<metric>" -> value, measured as `protocol` says.

    panels: pictures in the repository. Everything said here comes from these.
    """
    base = str(metadata["base_model"])
    licence = licence_of(base)
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None and not Path(base).exists()
    # the hub refuses a card whose base model is a path; nor does anybody need to know where that path was
    base = base if on_hub else Path(base).name
    header = [f"base_model: {base}"] if on_hub else []
    method = str(metadata["method"])
    header += ["library_name: diffusers"] if method in DIFFUSION else []
    header += [f"license: {licence or 'other'}", "pipeline_tag: image-to-image"]
    header += [f"tags: [lora, intrinsic-lora, {metadata['task']}, {metadata['method']}]"]
    terms = licence or "not stated"
    convention = "".join(
        f" {key.replace('_', ' ').title()}: {metadata[key]}." for key in CONVENTIONS if key in metadata
    )
    prompt = f' Prompt: "{metadata["prompt"]}".' if metadata["prompt"] else ""
    load = LOADING[method]
    parts = [
        "\n".join(["---", *header, "---"]),
        f"# {repo_id}",
        f"A LoRA that makes {base} predict {metadata['task']} ({metadata['method']}), trained with the method of "
        f"[Intrinsic LoRA](https://arxiv.org/abs/2311.17137).{prompt}{convention}",
        _table(["", ""], [[key, value] for key, value in {**metadata, "base_model": base}.items()]),
        _scores(scores, protocol),
        *[f"![{Path(panel).stem}]({panel})" for panel in panels],
        "## Load it",
        load(repo_id, base, metadata),
        f"## Licence\n\nThe base model's: {terms}. Its terms of use hold for this LoRA and what it predicts.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(one_line(str(cell)).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _scores(scores: Mapping[str, float], protocol: str) -> str:
    """A row per split, a column per metric."""
    parts = [(name.split("/", 2), value) for name, value in scores.items() if name.startswith("val/")]
    named = [(split, metric, value) for (_, split, metric), value in parts]
    if not named:
        return ""
    metrics = list(dict.fromkeys(metric for _, metric, _ in named))
    head = ["images", *(f"{metric} {'↑' if higher_is_better(metric) else '↓'}" for metric in metrics)]
    rows = []
    for split in dict.fromkeys(split for split, _, _ in named):
        found = {metric: value for at, metric, value in named if at == split}
        rows.append([split, *(f"{found[metric]:.4g}" if metric in found else "" for metric in metrics)])
    return f"## Scores\n\n{_table(head, rows)}\n\nProtocol: {protocol}"


def _ours(repo_id: str, script: str) -> str:
    return f"""This project (fills in task, prompt and resolution from the file):

```bash
hf download {repo_id} --local-dir lora
python {script} --lora lora --pretrained_model_name_or_path path/to/base --input_dir my_dataset --output_dir output
```"""


def _single_step(repo_id: str, base: str, metadata: Mapping[str, object]) -> str:
    papers = f"""diffusers before 0.40, with the paper's own line:

```python
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import hf_hub_download

pipeline = StableDiffusionPipeline.from_pretrained("{base}")
pipeline.unet.load_attn_procs(torch.load(hf_hub_download("{repo_id}", "{BIN}")))
```

"""
    papers = "" if "depth_coding" in metadata else papers  # of such a LoRA there is no .bin
    return f"""{papers}diffusers, old and new:

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("{base}")
pipeline.load_lora_weights("{repo_id}", weight_name="{SAFETENSORS}")
```

Either way one UNet pass predicts; the pipeline's own call does not. `rgb`: (1,3,H,W) in [-1,1], sides a multiple of 8.

```python
import torch

vae, unet = pipeline.vae, pipeline.unet
ids = pipeline.tokenizer("{metadata["prompt"]}", padding="max_length", return_tensors="pt").input_ids
with torch.no_grad():
    z = vae.encode(rgb).latent_dist.mode() * vae.config.scaling_factor
    prediction = unet(z, {metadata["timestep"]}, pipeline.text_encoder(ids)[0]).sample
    prediction = vae.decode(prediction / vae.config.scaling_factor).sample
```

{_ours(repo_id, "inference_sd_single.py")}

peft's keys, for `unet.load_lora_adapter`; kohya's, for ComfyUI and sd-scripts (ComfyUI also takes the file as it is):

```bash
python -m utils.lora convert lora peft.safetensors --format peft
python -m utils.lora convert lora kohya.safetensors --format kohya
```"""


def _gan(repo_id: str, base: str, metadata: Mapping[str, object]) -> str:
    return f"""This project; the picture is G(w), its map G(w) with the LoRA:

```python
import torch
from huggingface_hub import snapshot_download
from utils.generators.gan_files import load_gan
from utils.lora import load_attn_procs

network = load_gan("path/to/{base}").network
w = network.mapping(torch.randn(1, network.style_dim))
picture = network(w)
load_attn_procs(network, snapshot_download("{repo_id}"))
prediction = network(w)
```"""


def _autoregressive(repo_id: str, base: str, metadata: Mapping[str, object]) -> str:
    return f"""This project; `rgb`: (1,3,S,S) in [-1,1], S the generator's own:

```python
from huggingface_hub import snapshot_download
from utils.generators.ar_files import load_autoregressive
from utils.generators.ar_objective import TokenPrediction
from utils.lora import load_attn_procs

base = load_autoregressive("path/to/{base}")
load_attn_procs(base.network, snapshot_download("{repo_id}"))
objective = TokenPrediction(base.tokens, "{metadata["positions"]}", "{metadata["decoding"]}")
prediction = objective.predict(base.network, rgb, [])
```"""


def _augunet(repo_id: str, base: str, metadata: Mapping[str, object]) -> str:
    return f"""It is a LoRA **and** an 8-channel `conv_in`: one without the other predicts nothing.

{_ours(repo_id, "inference_augunet.py")}

In Python, with one call for both:

```python
from diffusers import UNet2DConditionModel
from huggingface_hub import snapshot_download
from utils.lora import load_attn_procs

unet = UNet2DConditionModel.from_pretrained("{base}", subfolder="unet")
load_attn_procs(unet, snapshot_download("{repo_id}"))
```

diffusers (peft) without this project:

```python
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

pipeline = StableDiffusionPipeline.from_pretrained("{base}")
state = load_file(hf_hub_download("{repo_id}", "{CONV_IN}"))
pipeline.unet.conv_in = torch.nn.Conv2d(*state["weight"].shape[1::-1], 3, padding=1)
pipeline.unet.conv_in.load_state_dict(state)
pipeline.unet.register_to_config(in_channels=state["weight"].shape[1])
pipeline.load_lora_weights("{repo_id}", weight_name="{SAFETENSORS}")
```

ComfyUI cannot load the `conv_in`. The LoRA under other keys: `python -m utils.lora convert lora out.safetensors
--format peft` or `kohya`."""


LOADING = {"single-step": _single_step, "augunet": _augunet, "gan": _gan, "autoregressive": _autoregressive}
DIFFUSION = ("single-step", "augunet")  # what diffusers loads
