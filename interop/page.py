"""The table of which diffusers loads which file, and its place in interop/README.md."""

import re
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

PAGE = Path(__file__).resolve().with_name("README.md")  # the table goes between its markers
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
    worst = max(r["difference"] for m in measured.values() for r in m["results"].values() if r["status"] == "ok")
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


def write_page(text: str, page: Path = PAGE) -> None:
    """Put `text` between the two marker comments."""
    marked = re.compile(r"(<!-- interop:begin.*?-->\n).*?(<!-- interop:end -->)", re.DOTALL)
    old = page.read_text()
    if len(marked.findall(old)) != 1:
        sys.exit(f"error: {page} has no pair of marker comments interop:begin, interop:end")
    page.write_text(marked.sub(lambda match: match[1] + text + "\n" + match[2], old))
