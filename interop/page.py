"""The tables of which diffusers loads which file, and their places in interop/README.md."""

import re
import sys
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

PAGE = Path(__file__).resolve().with_name("README.md")  # the tables go between its markers
FILES = {  # folder of a LoRA under CASES/files -> what the table says of its keys
    "diffusers": "`diffusers`", "released": "`released`", "peft": "`peft`", "kohya": "`kohya`",
    "all-peft": "`peft`, all layers", "all-kohya": "`kohya`, all layers",
}  # fmt: skip
CALLS = {
    "attn_procs_dict": 'unet.load_attn_procs(torch.load("x.bin"))',
    "attn_procs_folder": 'unet.load_attn_procs("folder")',
    "pipe": 'pipe.load_lora_weights("folder")',
    "adapter": 'unet.load_lora_adapter(torch.load("x.bin"), prefix="unet")',
    "ours": 'utils.lora.load_attn_procs(unet, "folder")',
}
REVERSE = {
    "accelerate": "`accelerator.save_state` (`pytorch_model.bin`)",
    "safetensors": "`unet.save_attn_procs(safe_serialization=True)`",
    "bin": "`unet.save_attn_procs(safe_serialization=False)`",
}
FAMILY_FILES = {  # folder of a LoRA under CASES/families/<family>/files -> the table's name of it
    "attention": "`peft`, attention", "all": "`peft`, all layers", "all-kohya": "`kohya`, all layers",
    "all-ai-toolkit": "`ai-toolkit`, all layers",
}  # fmt: skip
PIPELINES = {
    "sdxl": "SDXL, `StableDiffusionXLPipeline`", "sd3": "SD 3 and 3.5, `StableDiffusion3Pipeline`",
    "flux2": "FLUX.2-klein, `Flux2KleinPipeline`", "z_image": "Z-Image, `ZImagePipeline`",
    "qwen_image": "Qwen-Image, `QwenImagePipeline`",
}  # fmt: skip
AUGUNET = {"pipe": 'conv_in set by hand, `pipe.load_lora_weights("folder")`', "ours": f"`{CALLS['ours']}`"}


def cell(result: Mapping | None) -> str:
    if result is None or result["status"] == "absent":
        return "–"
    return {"ok": "ok", "error": result.get("error", "")}.get(result["status"], f"**{result['status']}**")


def table(measured: Mapping[str, dict]) -> str:
    """The page's table: a row per call and file, a column per release."""
    names = [m["versions"]["diffusers"] for m in measured.values()]
    lines = ["| file's keys | call | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for short, call_text in CALLS.items():
        for kind in ("diffusers", "all-peft") if short == "attn_procs_folder" else FILES:
            text = call_text.replace('prefix="unet"', "prefix=None") if kind == "released" else call_text
            cells = [cell(m["results"].get(f"{short} {kind}")) for m in measured.values()]
            lines.append(f"| {FILES[kind]} | `{text}` | " + " | ".join(cells) + " |")
    for short, text in REVERSE.items():
        cells = [cell(m["results"].get(f"reverse {short}")) for m in measured.values()]
        lines.append(f"| trained by 0.20.2, {text} | `{CALLS['ours']}` | " + " | ".join(cells) + " |")
    for name, what in (("augunet", "LoRA"), ("augunet-all", "LoRA on all layers")):
        for short, text in AUGUNET.items():
            cells = [cell(m["results"].get(f"{name} {short}")) for m in measured.values()]
            lines.append(f"| AugUNet's folder: {what}, `conv_in.safetensors` | {text} | " + " | ".join(cells) + " |")
    others = {f"{family} {name}" for family in PIPELINES for name in FAMILY_FILES}
    worst = worst_of(one for m in measured.values() for key, one in m["results"].items() if key not in others)
    effect = min(m["effect"] for m in measured.values())
    companions = "; ".join(
        f"{m['versions']['diffusers']} with transformers {m['versions']['transformers']}, "
        + (f"peft {m['versions']['peft']}" if "peft" in m["versions"] else "no peft")
        for m in measured.values()
    )
    explained = (
        f"ok: the UNet's output is that of weights merged by hand (largest difference {worst:.1e} of the output's "
        f"scale; the LoRAs change it by {effect:.2f} or more). **no-op**: no error, and nothing loaded. **wrong**: "
        f"no error, and another output (kohya keys in 0.35.2: time_embedding's two layers are left out). –: no such "
        f"call, or no peft. Measured with torch {next(iter(measured.values()))['versions']['torch']}: {companions}."
    )
    lines += ["", *textwrap.wrap(explained, 119, break_on_hyphens=False)]
    return "\n".join(lines)


def worst_of(results: Iterable[Mapping]) -> float:
    """The largest difference of what is ok."""
    return max(result["difference"] for result in results if result["status"] == "ok")


def families_table(measured: Mapping[str, dict]) -> str:
    """The same of the other families of base models, in the releases that have any of them."""
    rows = {f"{family} {name}": (family, name) for family in PIPELINES for name in FAMILY_FILES}
    taken = {name: {key: m["results"][key] for key in rows if key in m["results"]} for name, m in measured.items()}
    taken = {name: found for name, found in taken.items() if {one["status"] for one in found.values()} - {"absent"}}
    names = [measured[name]["versions"]["diffusers"] for name in taken]
    lines = ["| pipeline | file's keys | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for key, (family, name) in rows.items():
        if any(key in found for found in taken.values()):
            cells = [cell(found.get(key)) for found in taken.values()]
            lines.append(f"| {PIPELINES[family]} | {FAMILY_FILES[name]} | " + " | ".join(cells) + " |")
    worst = worst_of(one for found in taken.values() for one in found.values())
    explained = (
        'The call is `pipe.load_lora_weights("folder", weight_name=...)`. ok: the network\'s output is that of '
        f"weights merged by hand (largest difference {worst:.1e} of the output's scale). An error's name: it raises "
        "that and loads nothing. –: this release has no such pipeline, or its network takes other arguments "
        "(Qwen-Image's in 0.35.2)."
    )
    return "\n".join([*lines, "", *textwrap.wrap(explained, 119, break_on_hyphens=False)])


def write_page(texts: Mapping[str, str], page: Path = PAGE) -> None:
    """Put each text between the two marker comments of its name."""
    content = page.read_text()
    for name, text in texts.items():
        marked = re.compile(rf"(<!-- {name}:begin.*?-->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        if len(marked.findall(content)) != 1:
            sys.exit(f"error: {page} has no pair of marker comments {name}:begin, {name}:end")
        content = marked.sub(lambda match, text=text: match[1] + text + "\n" + match[2], content)
    page.write_text(content)
