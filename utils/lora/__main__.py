"""`python -m utils.lora inspect` and `convert`: look into a LoRA file, and write it under other key names."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from utils.cli import Parser
from utils.errors import InputError, note, run
from utils.lora import CONV_IN, read_lora
from utils.lora.keys import FORMATS, Layer, key_format, parse_layers, split_module, to_format
from utils.system.atomic import replace

# The attention blocks of Stable Diffusion 1 and 2: name -> (how many, width); each has attn1 (self) and attn2 (text)
SD_BLOCKS = {f"down_blocks.{i}": (2, width) for i, width in enumerate((320, 640, 1280))}
SD_BLOCKS |= {"mid_block": (1, 1280)} | {f"up_blocks.{i}": (3, width) for i, width in ((1, 1280), (2, 640), (3, 320))}
SD_BY_TEXT_WIDTH = {768: "Stable Diffusion 1 (1.5 has this shape)", 1024: "Stable Diffusion 2 (2.1 has this shape)"}


def sd_features(text_width: int) -> dict[str, tuple[int, int]]:
    """Name of each of the 128 attention linears of Stable Diffusion 1 or 2 -> (in_features, out_features)."""
    features = {}
    for block, (count, width) in SD_BLOCKS.items():
        for i in range(count):
            for attention, context in (("attn1", width), ("attn2", text_width)):
                layer = f"{block}.attentions.{i}.transformer_blocks.0.{attention}"
                features |= {f"{layer}.{target}": (width, width) for target in ("to_q", "to_out.0")}
                features |= {f"{layer}.{target}": (context, width) for target in ("to_k", "to_v")}
    return features


def guess_base(layers: Mapping[str, Layer]) -> str:
    """Which base model the layers' names and widths fit, in words."""
    have = {module: (layer.down.shape[1], layer.up.shape[0]) for module, layer in layers.items()}
    for text_width, label in SD_BY_TEXT_WIDTH.items():
        want = sd_features(text_width)
        text_layers = [module for module in have if ".attn2.to_k" in module or ".attn2.to_v" in module]
        if text_layers and have.items() <= want.items():
            return label if len(have) == len(want) else f"{label}, but {len(have)} of its {len(want)} linears only"
    contexts = sorted(
        {width for module, (width, _) in have.items() if ".attn2.to_k" in module or ".attn2.to_v" in module}
    )
    widths = sorted({width for _, width in have.values()})
    return f"another architecture (text width {_listed(contexts) or 'unknown'}, block widths {_listed(widths)})"


def update_norm(layer: Layer) -> float:
    """Frobenius norm of scale * up @ down, from r x r matrices: |UD|^2 = trace(U'U DD')."""
    down, up = layer.down.double(), layer.up.double()
    square = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0)  # rounding may leave -1e-30; NaN stays
    return abs(layer.scale) * square.sqrt().item()


def describe(source: Path) -> dict:
    """All that `inspect` tells, as plain values."""
    state, metadata, file = read_lora(source)
    layers = parse_layers(state, file)
    formats = Counter(key_format(key) for key in state)
    blocks: dict[str, dict[str, float]] = {}
    for module, layer in layers.items():
        blocks.setdefault(module.split(".attentions.")[0], {})[module] = update_norm(layer)
    return {
        "file": file,
        "bytes": Path(file).stat().st_size,
        "format": formats.most_common(1)[0][0] if len(formats) == 1 else "mixed: " + _listed(sorted(formats)),
        "example_key": next(iter(state)),
        "rank": _only(sorted({layer.down.shape[0] for layer in layers.values()})),
        "alpha": _only(sorted({layer.alpha for layer in layers.values()}, key=str)),
        "dtype": _listed(sorted({str(t.dtype).removeprefix("torch.") for t in state.values() if t.ndim == 2})),
        "attention_layers": len({split_module(module)[0] for module in layers}),
        "linears": len(layers),
        "parameters": sum(layer.down.numel() + layer.up.numel() for layer in layers.values()),
        "fits": guess_base(layers),
        "conv_in": (Path(file).parent / CONV_IN).is_file(),
        "not_finite": sorted(m for norms in blocks.values() for m, norm in norms.items() if not math.isfinite(norm)),
        "norm": _norm(norm for norms in blocks.values() for norm in norms.values()),
        "blocks": [
            {
                "block": block,
                "linears": len(norms),
                "norm": _norm(norms.values()),
                "largest": max(norms, key=norms.get).removeprefix(block + "."),
                "largest_norm": _norm([max(norms.values())]),
            }
            for block, norms in sorted(blocks.items())
        ],
        "metadata": metadata,
    }


def table(facts: Mapping[str, object]) -> str:
    """`describe`'s facts as the text that `inspect` prints."""
    alpha = "none, scale 1" if facts["alpha"] is None else facts["alpha"]
    lines = [
        f"{facts['file']} ({facts['bytes'] / 2**20:.1f} MiB)",
        f"  format   {facts['format']}, e.g. {facts['example_key']}",
        f"  rank     {facts['rank']} (alpha: {alpha})",
        f"  layers   {facts['linears']} linears in {facts['attention_layers']} attention layers, "
        f"{facts['parameters']:,} parameters, {facts['dtype']}",
        f"  fits     {facts['fits']}",
    ]
    lines += [f"  with     {CONV_IN} beside it: a UNet with a widened conv_in (AugUNet)"] if facts["conv_in"] else []
    if facts["not_finite"]:
        bad = facts["not_finite"]
        lines += [f"  BROKEN   {len(bad)} linears hold NaN or infinity, e.g. {bad[0]}"]
    elif facts["norm"] == 0:
        lines += ["  EMPTY    every up @ down is zero: loading it changes nothing"]
    width = max(len(row["block"]) for row in facts["blocks"])
    lines += ["", f"  {'block':<{width}}  linears  |up @ down|  largest of them"]
    for row in facts["blocks"]:
        norms = [math.nan if row[key] is None else row[key] for key in ("norm", "largest_norm")]
        lines += [
            f"  {row['block']:<{width}}  {row['linears']:>7}  {norms[0]:>11.4g}  {norms[1]:.4g} in {row['largest']}"
        ]
    metadata = facts["metadata"]
    width = max(map(len, metadata), default=0)
    lines += ["", "  metadata" if metadata else "  no metadata"]
    lines += [f"    {key:<{width}}  {value}" for key, value in sorted(metadata.items())]
    return "\n".join(lines)


def convert(source: Path, out: Path, to: str) -> None:
    """Write the LoRA in `source` to the file `out` under the keys of `to`, with its metadata, whole or not at all.

    A conv_in.safetensors beside `source` (AugUNet) goes beside `out`, for the LoRA draws nothing useful without it.
    """
    if out.suffix not in (".safetensors", ".bin"):
        raise InputError(f"{out}: name a file that ends in .safetensors or .bin")
    state, metadata, file = read_lora(source)
    if out.exists() and out.samefile(file):
        raise InputError(f"{out}: is the file to convert; name another one")
    converted = to_format(parse_layers(state, file), to)
    conv_in, conv_in_out = Path(file).parent / CONV_IN, out.parent / CONV_IN
    travels = conv_in.is_file() and conv_in_out.resolve() != conv_in.resolve()
    if travels and conv_in_out.exists() and conv_in_out.read_bytes() != conv_in.read_bytes():
        raise InputError(f"{conv_in_out}: belongs to another LoRA; convert into another folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if travels:
            replace(conv_in_out, lambda part: part.write_bytes(conv_in.read_bytes()))
            note(f"{CONV_IN} copied to {out.parent}: this LoRA needs it")
        replace(out, lambda part: _write(converted, metadata, part, out.suffix))
    except Exception as error:  # safetensors and torch raise their own kinds where a disk is full
        raise InputError(f"{out}: cannot write it ({' '.join(str(error).split())[:200]})") from None
    if metadata and out.suffix == ".bin":
        note(f"{out.name} cannot hold the metadata ({', '.join(sorted(metadata))}); a .safetensors file does")


def _write(state: dict[str, Tensor], metadata: dict[str, str], path: Path, suffix: str) -> None:
    save_file(state, path, metadata or None) if suffix == ".safetensors" else torch.save(state, path)


def _norm(norms) -> float | None:
    """Norm of all together; None for NaN or infinity, which JSON cannot say."""
    value = math.sqrt(sum(norm * norm for norm in norms))
    return value if math.isfinite(value) else None


def _only(values: list) -> object:
    return values[0] if len(values) == 1 else values


def _listed(values) -> str:
    return ", ".join(map(str, values))


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m utils.lora", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    look = commands.add_parser("inspect", help="format, rank, layers, metadata, norms per block, fitting base model")
    look.add_argument("source", type=Path, help="a .safetensors or .bin file, or a folder that holds one")
    look.add_argument("--json", action="store_true", help="print JSON")
    change = commands.add_parser(
        "convert",
        help="write it under other key names",
        description="released: as the authors' files. diffusers: as this project writes, for every diffusers and "
        "ComfyUI. peft: for load_lora_adapter. kohya: sd-scripts, WebUI, ComfyUI. Weights keep their bits, unless "
        "kohya's alpha differs from the rank and the other format cannot say so.",
    )
    change.add_argument("source", metavar="IN", type=Path, help="a file of any known format, or a folder with one")
    change.add_argument("out", metavar="OUT", type=Path, help="a .safetensors or .bin file")
    change.add_argument("--format", required=True, choices=FORMATS, help="the key names to write")
    args = parser.parse_args(argv)
    if args.command == "convert":
        convert(args.source, args.out, args.format)
        print(f"{args.out}: {args.format} keys")
        return
    facts = describe(args.source)
    print(json.dumps(facts, indent=2) if args.json else table(facts))


if __name__ == "__main__":
    run(main)
