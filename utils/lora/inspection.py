"""The facts that `python -m utils.lora inspect` prints about a LoRA file, read without torch: also which base model
the layers fit, by the layers of Stable Diffusion 1 and 2 that a LoRA may sit on.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from utils.errors import InputError, one_line
from utils.lora.files import CONV_IN, brings_conv_in, read_arrays
from utils.lora.keys import Layer, key_format, parse_layers, split_module, strip_wrappers, without_text_encoder
from utils.lora.targets import kind_of, kinds_of, place_of

WIDTHS, TIME_WIDTH = (320, 640, 1280, 1280), 1280
SD_BY_TEXT_WIDTH = {768: "Stable Diffusion 1 (1.5 has this shape)", 1024: "Stable Diffusion 2 (2.1 has this shape)"}
TRANSFORMERS = {  # part of the layers' names -> the transformer that has it; the first match counts
    ".single_transformer_blocks.": "FLUX.2", ".linear_in": "FLUX.2", "_stream_modulation": "FLUX.2",
    ".attention.": "Z-Image", ".feed_forward.": "Z-Image", "_refiner.": "Z-Image",
    ".img_": "Qwen-Image", ".txt_": "Qwen-Image", ".attn2.": "Stable Diffusion 3", ".ff": "Stable Diffusion 3",
}  # fmt: skip
Shapes = dict[str, tuple[int, ...]]  # name of a layer -> (in, out) of a linear, (in, out, kh, kw) of a convolution


def sd_layers(text_width: int) -> Shapes:
    """The shapes of all layers, of all kinds, of Stable Diffusion 1 (text_width 768) or 2 (1024)."""
    shapes: Shapes = {"time_embedding.linear_1": (WIDTHS[0], TIME_WIDTH), "time_embedding.linear_2": (TIME_WIDTH,) * 2}
    skips = [WIDTHS[0]]  # the channels of what the way down hands over to the way up, conv_in's first
    features = WIDTHS[0]
    for i, width in enumerate(WIDTHS):
        attentions, more = 2 * (i < 3), [width] * (2 + (i < 3))
        shapes |= _block_layers(f"down_blocks.{i}", [features, width], width, attentions, text_width)
        shapes |= {f"down_blocks.{i}.downsamplers.0.conv": (width, width, 3, 3)} if i < 3 else {}
        features, skips = width, skips + more
    shapes |= _block_layers("mid_block", [features] * 2, features, 1, text_width)
    for i, width in enumerate(reversed(WIDTHS)):
        inputs = [(features if j == 0 else width) + skips.pop() for j in range(3)]
        shapes |= _block_layers(f"up_blocks.{i}", inputs, width, 3 * (i > 0), text_width)
        shapes |= {f"up_blocks.{i}.upsamplers.0.conv": (width, width, 3, 3)} if i < 3 else {}
        features = width
    return shapes


def _block_layers(block: str, inputs: list[int], width: int, attentions: int, text_width: int) -> Shapes:
    """A block's ResNets, one per number of input channels, and its attentions."""
    shapes: Shapes = {}
    for i, features in enumerate(inputs):
        resnet = f"{block}.resnets.{i}"
        shapes[f"{resnet}.conv1"], shapes[f"{resnet}.conv2"] = (features, width, 3, 3), (width, width, 3, 3)
        shapes[f"{resnet}.time_emb_proj"] = (TIME_WIDTH, width)
        if features != width:
            shapes[f"{resnet}.conv_shortcut"] = (features, width, 1, 1)
    projection = (width, width, 1, 1) if text_width == 768 else (width, width)
    for i in range(attentions):
        attention, inner = f"{block}.attentions.{i}", f"{block}.attentions.{i}.transformer_blocks.0"
        shapes |= {f"{attention}.proj_in": projection, f"{attention}.proj_out": projection}
        for name, context in (("attn1", width), ("attn2", text_width)):
            shapes |= {f"{inner}.{name}.{target}": (width, width) for target in ("to_q", "to_out.0")}
            shapes |= {f"{inner}.{name}.{target}": (context, width) for target in ("to_k", "to_v")}
        shapes |= {f"{inner}.ff.net.0.proj": (width, 8 * width), f"{inner}.ff.net.2": (4 * width, width)}
    return shapes


def guess_base(layers: Mapping[str, Layer], header: Mapping[str, str]) -> str:
    """Which base model the layers' names and shapes fit, in words; of other families by the header if it has it."""
    if "family" in header:
        return f"the family {header['family']}, by its header"
    if any(place_of(module)[0] == "transformer" for module in layers):
        return next((base for sign, base in TRANSFORMERS.items() if any(sign in f".{name}" for name in layers)),
                    "a transformer: Stable Diffusion 3 or Qwen-Image")  # fmt: skip
    have, kinds, fits = {module: layer.shape for module, layer in layers.items()}, kinds_of(layers), []
    for text_width, label in SD_BY_TEXT_WIDTH.items():
        want = {name: shape for name, shape in sd_layers(text_width).items() if kind_of(name) in kinds}
        if have.items() <= want.items():
            part = "" if len(have) == len(want) else f", but {len(have)} of its {len(want)} layers only"
            fits.append(label + part)
    if fits:
        return " and ".join(fits)  # those layers that do not read the text can be the same in both
    texts = {shape[0] for name, shape in have.items() if name.endswith(("attn2.to_k", "attn2.to_v"))}
    if texts == {2048}:
        return "Stable Diffusion XL (text width 2048)"
    wider = (".ff.net.0.proj", ".linear_1", ".linear_2")
    widths = {shape[1] for name, shape in have.items() if not name.endswith(wider)}
    listed = [", ".join(map(str, sorted(values))) or "unknown" for values in (texts, widths)]
    return f"another architecture (text width {listed[0]}, block widths {listed[1]})"


SHOWN = 200  # characters of a value in the header that the table prints


def update_norm(layer: Layer) -> float:
    """Frobenius norm of scale * up @ down, from r x r matrices: |UD|^2 = trace(U'U DD'). Kernels are flattened."""
    down = layer.down.astype(np.float64).reshape(layer.down.shape[0], -1)
    up = layer.up.astype(np.float64).reshape(layer.up.shape[:2])
    with np.errstate(all="ignore"):
        square = np.maximum(((up.T @ up) * (down @ down.T)).sum(), 0)  # rounding may leave -1e-30; NaN stays
        return float(abs(layer.scale) * np.sqrt(square))


def describe(source: Path) -> dict:
    """All that `inspect` tells, as plain values."""
    (state, metadata, file), types = read_arrays(source)
    state, text_layers = without_text_encoder(state)
    if text_layers and not state:
        raise InputError(f"{file}: its {text_layers} layers are a text encoder's, none is a UNet's; take another file")
    layers = parse_layers(state, file, metadata)
    formats = Counter(key_format(key) for key in state)
    norms = {module: update_norm(layer) for module, layer in layers.items()}
    return {
        "file": file,
        "bytes": Path(file).stat().st_size,
        "format": formats.most_common(1)[0][0] if len(formats) == 1 else "mixed: " + _listed(sorted(formats)),
        "example_key": next(iter(state)),
        "rank": _only(sorted({layer.down.shape[0] for layer in layers.values()})),
        "alpha": _only(sorted({layer.alpha for layer in layers.values()}, key=str)),
        "scales": _scales(layers),
        "wrapped": any(strip_wrappers(key) != key for key in state),
        "text_encoder_layers": text_layers,
        "dtype": _listed(sorted({types[key] for key in state if not key.endswith(".alpha")})),
        "targets": ",".join(kinds_of(layers)),
        "attention_layers": len({split_module(module)[0] for module in layers if kind_of(module) == "attention"}),
        **_share(layers),
        "fits": guess_base(layers, metadata),
        "conv_in": brings_conv_in(file, metadata),
        "not_finite": sorted(module for module, norm in norms.items() if not math.isfinite(norm)),
        "norm": total_norm(norms.values()),
        "kinds": [
            {"kind": kind, **_share(own), "norm": total_norm(norms[module] for module in own)}
            for kind in kinds_of(layers)
            for own in [{module: layer for module, layer in layers.items() if kind_of(module) == kind}]
        ],
        "blocks": [_block(block, own) for block, own in sorted(_by_block(norms).items())],
        "metadata": metadata,
    }


def _scales(layers: Mapping[str, Layer]) -> list[dict]:
    """The scales in the file, the one of the most layers first: where each is stated, and for how many layers."""
    found = Counter((layer.scale, layer.down.shape[0], layer.alpha, layer.stated) for layer in layers.values())
    names = ("scale", "rank", "alpha", "stated_by")
    return [dict(zip(names, values, strict=True)) | {"layers": count} for values, count in found.most_common()]


def _share(layers: Mapping[str, Layer]) -> dict[str, int]:
    linears = sum(layer.down.ndim == 2 for layer in layers.values())
    parameters = sum(layer.down.size + layer.up.size for layer in layers.values())
    return {"linears": linears, "convs": len(layers) - linears, "parameters": parameters}


def _by_block(norms: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """ "down_blocks.0", "mid_block" and so on -> the norms of its layers."""
    blocks: dict[str, dict[str, float]] = {}
    for module, norm in norms.items():
        parts = module.split(".")
        blocks.setdefault(".".join(parts[: 2 if parts[0].endswith("_blocks") else 1]), {})[module] = norm
    return blocks


def _block(block: str, norms: Mapping[str, float]) -> dict:
    largest = max(norms, key=norms.__getitem__)
    return {
        "block": block,
        "layers": len(norms),
        "norm": total_norm(norms.values()),
        "largest": largest.removeprefix(block + "."),
        "largest_norm": total_norm([norms[largest]]),
    }


def table(facts: Mapping) -> str:
    """`describe`'s facts as the text that `inspect` prints."""
    first, *others = facts["scales"]
    alpha = "none, scale 1" if facts["alpha"] is None else f"{_alphas(facts)}, scale {first['scale']:.6g}"
    alpha += "" if facts["alpha"] is None or others else f" by {first['stated_by']}"
    alpha = f"{_alphas(facts)}, several scales: see below" if others else alpha
    lines = [
        f"{facts['file']} ({facts['bytes'] / 2**20:.1f} MiB)",
        f"  format   {facts['format']}, e.g. {facts['example_key']}",
        f"  rank     {facts['rank']} (alpha: {alpha})",
        *(
            ["  keys     with the names of wrappers (torch.compile, DDP, FSDP), which are passed over"]
            * facts["wrapped"]
        ),
        f"  layers   {_counted(facts)}, {facts['parameters']:,} parameters, {facts['dtype']}",
        f"  fits     {facts['fits']}",
    ]
    if count := facts["text_encoder_layers"]:
        lines += [f"  text     {count} layers of a text encoder, which stays frozen here: loading refuses the file;"]
        lines += ["           convert --drop_text_encoder writes one without them"]
    lines += [f"  with     {CONV_IN} next to it: a UNet with a widened conv_in (AugUNet)"] if facts["conv_in"] else []
    if bad := facts["not_finite"]:
        lines += [f"  BROKEN   {len(bad)} layers hold NaN or infinity, e.g. {bad[0]}"]
    elif facts["norm"] == 0:
        lines += ["  EMPTY    every up @ down is zero: loading it changes nothing"]
    if others:
        lines += ["", "  scale      rank  alpha     layers  stated by"]
        lines += [
            f"  {row['scale']:<9.5g}  {row['rank']:<4}  {_alpha(row['alpha']):<8}  {row['layers']:>6}  "
            f"{row['stated_by']}"
            for row in facts["scales"]
        ]
    lines += ["", f"  {'kind':<11}  linears  convs  parameters  share  |up @ down|"]
    for row in facts["kinds"]:
        share = row["parameters"] / facts["parameters"] if facts["parameters"] else 0
        lines += [
            f"  {row['kind']:<11}  {row['linears']:>7}  {row['convs']:>5}  {row['parameters']:>10,}  {share:>5.1%}"
            f"  {_number(row['norm']):>11.4g}"
        ]
    width = max(len(row["block"]) for row in facts["blocks"])
    lines += ["", f"  {'block':<{width}}  layers  |up @ down|  largest of them"]
    for row in facts["blocks"]:
        lines += [
            f"  {row['block']:<{width}}  {row['layers']:>6}  {_number(row['norm']):>11.4g}  "
            f"{_number(row['largest_norm']):.4g} in {row['largest']}"
        ]
    metadata = facts["metadata"]
    width = max(map(len, metadata), default=0)
    lines += ["", "  metadata" if metadata else "  no metadata"]
    lines += [f"    {key:<{width}}  {_cut(value)}" for key, value in sorted(metadata.items())]
    return "\n".join(map(one_line, lines))


def _cut(value: str) -> str:
    return value if len(value) <= SHOWN else f"{value[:SHOWN]} ... ({len(value)} characters; --json prints them all)"


def _alphas(facts: Mapping) -> str:
    alphas = facts["alpha"] if isinstance(facts["alpha"], list) else [facts["alpha"]]
    return _listed(_alpha(alpha) for alpha in alphas)


def _alpha(alpha: float | None) -> str:
    return "none" if alpha is None else f"{alpha:.6g}"


def _counted(facts: Mapping) -> str:
    """ "128 linears in 32 attention layers", or "194 linears and 98 convolutions (attention,...)"."""
    if facts["targets"] == "attention":
        return f"{facts['linears']} linears in {facts['attention_layers']} attention layers"
    return f"{facts['linears']} linears and {facts['convs']} convolutions ({facts['targets']})"


def total_norm(norms: Iterable[float]) -> float | None:
    """Norm of all together; None for NaN or infinity, which JSON cannot say."""
    value = math.sqrt(sum(norm * norm for norm in norms))
    return value if math.isfinite(value) else None


def _number(norm: float | None) -> float:
    return math.nan if norm is None else norm


def _only(values: list) -> object:
    return values[0] if len(values) == 1 else values


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
