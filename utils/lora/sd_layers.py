"""The layers of Stable Diffusion 1 and 2 that a LoRA may sit on, and which of them a LoRA's layers fit."""

from collections.abc import Mapping

from utils.lora.keys import Layer
from utils.lora.targets import kind_of, kinds_of

WIDTHS, TIME_WIDTH = (320, 640, 1280, 1280), 1280
SD_BY_TEXT_WIDTH = {768: "Stable Diffusion 1 (1.5 has this shape)", 1024: "Stable Diffusion 2 (2.1 has this shape)"}
Shapes = dict[str, tuple[int, ...]]  # name of a layer -> (in, out) of a linear, (in, out, kh, kw) of a convolution


def sd_layers(text_width: int) -> Shapes:
    """The shapes of all layers, of all kinds, of Stable Diffusion 1 (text_width 768) or 2 (1024)."""
    shapes: Shapes = {"time_embedding.linear_1": (WIDTHS[0], TIME_WIDTH), "time_embedding.linear_2": (TIME_WIDTH,) * 2}
    skips = [WIDTHS[0]]  # the channels of what the way down hands over to the way up, conv_in's first
    features = WIDTHS[0]
    for i, width in enumerate(WIDTHS):
        attentions, more = 2 * (i < 3), [width] * (2 + (i < 3))
        shapes |= _block(f"down_blocks.{i}", [features, width], width, attentions, text_width)
        shapes |= {f"down_blocks.{i}.downsamplers.0.conv": (width, width, 3, 3)} if i < 3 else {}
        features, skips = width, skips + more
    shapes |= _block("mid_block", [features] * 2, features, 1, text_width)
    for i, width in enumerate(reversed(WIDTHS)):
        inputs = [(features if j == 0 else width) + skips.pop() for j in range(3)]
        shapes |= _block(f"up_blocks.{i}", inputs, width, 3 * (i > 0), text_width)
        shapes |= {f"up_blocks.{i}.upsamplers.0.conv": (width, width, 3, 3)} if i < 3 else {}
        features = width
    return shapes


def _block(block: str, inputs: list[int], width: int, attentions: int, text_width: int) -> Shapes:
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


def guess_base(layers: Mapping[str, Layer]) -> str:
    """Which base model the layers' names and shapes fit, in words."""
    have, kinds, fits = {module: layer.shape for module, layer in layers.items()}, kinds_of(layers), []
    for text_width, label in SD_BY_TEXT_WIDTH.items():
        want = {name: shape for name, shape in sd_layers(text_width).items() if kind_of(name) in kinds}
        if have.items() <= want.items():
            part = "" if len(have) == len(want) else f", but {len(have)} of its {len(want)} layers only"
            fits.append(label + part)
    if fits:
        return " and ".join(fits)  # those layers that do not read the text can be the same in both
    texts = {shape[0] for name, shape in have.items() if name.endswith(("attn2.to_k", "attn2.to_v"))}
    wider = (".ff.net.0.proj", ".linear_1", ".linear_2")
    widths = {shape[1] for name, shape in have.items() if not name.endswith(wider)}
    listed = [", ".join(map(str, sorted(values))) or "unknown" for values in (texts, widths)]
    return f"another architecture (text width {listed[0]}, block widths {listed[1]})"
