"""`python -m utils.lora inspect` and `convert`: look into a LoRA file, and write it under other key names."""

import json
from collections.abc import Mapping
from pathlib import Path

from utils.cli import Parser, path_flag
from utils.errors import InputError, note, run
from utils.lora.files import CONV_IN, PEFT, LoraFile, brings_conv_in, read_lora
from utils.lora.inspection import describe, table
from utils.lora.keys import FORMATS, header_of, parse_layers, sdxl_key, to_format, without_text_encoder
from utils.lora.targets import place_of

READ_AS = {  # format -> families whose pipelines convert it
    "kohya": ("sd", "sdxl", "qwen_image", "z_image"),
    "ai-toolkit": ("qwen_image", "z_image"),
}


def convert(source: Path, out: Path, to: str, drop_text_encoder: bool = False) -> None:
    """Write the LoRA in `source` to the file `out` under the keys of `to`, with its metadata, atomically.

    The scale goes into kohya's alpha tensors or into the weights; what the header stated of it is left out.
    drop_text_encoder: leave out a text encoder's layers, which are an error otherwise.

    A conv_in.safetensors next to `source` (AugUNet) is copied next to `out`: the LoRA does not work without it.
    """
    from utils.system.atomic import replace  # with torch below: slow to import, and `inspect` needs neither

    state, metadata, file = _read_for(source, out)
    if drop_text_encoder:
        state, dropped = without_text_encoder(state)
        note(
            f"{dropped} text-encoder layers left out"
            if dropped
            else f"{file}: has no text-encoder layers to leave out"
        )
    layers = parse_layers(state, file, metadata)
    unstated = "an unnamed family" if place_of(next(iter(layers)))[0] == "transformer" else "sd"
    if to in READ_AS and (family := metadata.get("family", unstated)) not in READ_AS[to]:
        raise InputError(
            f"{file}: {to} keys are read by the pipelines of {', '.join(READ_AS[to])} only, and this LoRA is of "
            f"{family}; use peft keys"
        )
    stated, metadata = metadata, header_of(layers, metadata, to)
    if gone := sorted(key for key in stated if metadata.get(key) != stated[key]):
        place = "the alpha tensors" if to == "kohya" else "the weights"
        note(f"the scale is in {place} now; its former place is not copied ({', '.join(gone)})")
    try:
        converted = to_format(layers, to)
        if to == "kohya" and metadata.get("family") == "sdxl":
            converted = {sdxl_key(key): weight for key, weight in converted.items()}
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    if out.exists():
        refuse_other_lora(out, converted, metadata)
    conv_in, conv_in_out = Path(file).parent / CONV_IN, out.parent / CONV_IN
    travels = brings_conv_in(file, metadata) and conv_in_out.resolve() != conv_in.resolve()
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
    if to == "kohya" and any(module.startswith("time_embedding.") for module in layers):
        fault = "refuses" if metadata.get("family") == "sdxl" else "leaves time_embedding out silently of"
        note(f"diffusers 0.35 {fault} such a kohya file (0.39 reads it): give it peft keys")
    if metadata and out.suffix == ".bin":
        note(f"{out.name} cannot hold the metadata ({', '.join(sorted(metadata))}); a .safetensors file does")


def _read_for(source: Path, out: Path) -> LoraFile:
    """The LoRA to convert. InputError where `out` cannot hold it."""
    if out.suffix not in (".safetensors", ".bin"):
        raise InputError(f"{out}: name a file that ends in .safetensors or .bin")
    if out.name in PEFT:
        raise InputError(f"{out}: peft looks for an adapter_config.json next to a file of that name; name another one")
    lora = read_lora(source)
    if out.exists() and out.samefile(lora.path):
        raise InputError(f"{out}: is the file to convert; name another one")
    coding = lora.metadata.get("depth_coding", "linear")
    if out.suffix == ".bin" and coding != "linear":
        raise InputError(
            f"{out}: a .bin has no metadata, and {lora.path} predicts {coding} depth, which inference must know of; "
            "name a .safetensors file"
        )
    return lora


def refuse_other_lora(out: Path, state: Mapping, metadata: Mapping[str, str]) -> None:
    """InputError unless the file `out` holds just these weights and this header: a conversion that is repeated."""
    import torch

    try:
        found, header, _ = read_lora(out)
        same = found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)
        same = same and (out.suffix == ".bin" or dict(header) == dict(metadata))
    except InputError:
        same = False
    if not same:
        raise InputError(f"{out}: is there and holds something else; remove it, or name another file")
    note(f"{out}: replaces the same weights")


def _write(state: dict, metadata: dict[str, str], path: Path, suffix: str) -> None:
    import torch
    from safetensors.torch import save_file

    save_file(state, path, metadata or None) if suffix == ".safetensors" else torch.save(state, path)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m utils.lora", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    look = commands.add_parser(
        "inspect", help="format, rank, kinds of layers, metadata, norms per block, fitting base model"
    )
    look.add_argument("source", type=path_flag, help="a .safetensors or .bin file, a folder with one, or a hub name")
    look.add_argument("--json", action="store_true", help="print JSON")
    change = commands.add_parser(
        "convert",
        help="write it under other key names",
        description="released: as the authors' files. diffusers: as this project writes LoRAs on attention, for every "
        "diffusers and ComfyUI. peft: for load_lora_adapter; as this project writes LoRAs on other layers. kohya: "
        "sd-scripts, WebUI, ComfyUI. ai-toolkit: some transformers. released and diffusers can only name attention's "
        "layers. Weights keep their "
        "bits, unless the scale is not 1 and the new format cannot store it; float8 weights become float32.",
    )
    change.add_argument(
        "source", metavar="IN", type=path_flag, help="a file of any known format, or a folder with one"
    )
    change.add_argument("out", metavar="OUT", type=path_flag, help="a .safetensors or .bin file")
    change.add_argument("--format", required=True, choices=(*FORMATS, "ai-toolkit"), help="the key names to write")
    change.add_argument(
        "--drop_text_encoder",
        action="store_true",
        help="leave out the layers of a text encoder; the prompt is then encoded by the base model's own",
    )
    args = parser.parse_args(argv)
    if args.command == "convert":
        convert(args.source, args.out, args.format, args.drop_text_encoder)
        print(f"{args.out}: {args.format} keys")
        return
    facts = describe(args.source)
    print(json.dumps(facts, indent=2) if args.json else table(facts))


if __name__ == "__main__":
    run(main)
