"""The scale of a LoRA's layers: W becomes W + scale * up @ down. Standard library only, so that it can be copied.

Where the tools that write LoRA files keep it (rank r is the tensors' own):
    alpha tensors            sd-scripts, LyCORIS, OneTrainer, diffusers of 2023: alpha / r of each layer
    lora_adapter_metadata    diffusers from 0.34: peft's LoraConfig as JSON in the header, keys after "unet." or bare
    adapter_config.json      peft's save_pretrained: the same LoraConfig, in a file next to adapter_model.*
    ss_network_alpha, _args  sd-scripts' and LyCORIS's flags, in the header: conv_alpha in _args is for 3x3 kernels
    ot_config                OneTrainer's settings, in the header
    lora_alpha, alpha, ...   training scripts of one's own: plain numbers in the header
peft's LoraConfig: alpha / r, with use_rslora alpha / sqrt(r); alpha_pattern and rank_pattern override lora_alpha and r
for the layers whose name, or the end of it after a dot, the regular expression matches. A layer that no record
mentions has scale 1: that is what released, ai-toolkit's and this project's files mean.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from utils.system.atomic import json_object

HEADER, CONFIG = "lora_adapter_metadata", "adapter_config.json"
ALPHAS, RANKS = ("lora_alpha", "network_alpha", "alpha"), ("rank", "lora_rank", "network_dim", "r")
ROOTS = ("use_rslora", "rslora")
STATED = (HEADER, CONFIG, "ss_network_alpha", "ss_network_args", "ot_config", *ALPHAS, *ROOTS)  # keys stating a scale
NO_RECORD = "no record of a scale"
TOLERANCE = 5e-3  # relative; alpha tensors may be bf16, which has 8 bits
_COMPONENT = re.compile(r"(unet|transformer|text_encoder(_\d)?|prior|controlnet)\.")
_OWN = ("unet.", "transformer.", "base_model.model.")  # before the keys of the network that is loaded here
_NOT_A_NUMBER = ("", "none", "null", "dynamic", "mixed")  # what sd-scripts' resize and merge tools write
_VARIES = {"block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas", "dim_from_weights", "preset"}
_MORE = (  # settings of LoraConfig with which up @ down is not all that the adapter adds
    "use_dora", "lora_bias", "use_qalora", "use_bdlora", "layer_replication", "target_parameters", "kasa_config",
    "monteclora_config", "velora_config", "trainable_token_indices",
)  # fmt: skip
# What torch.compile, FSDP, activation checkpointing and DeepSpeed name a wrapper's child; DDP names it `module`.
WRAPPERS = "_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module"
_WRAPPED = re.compile(rf"(?:{WRAPPERS}|(?<![\w.])module)\\?\.")
_LONGEST = 300  # characters of a layer's name: real ones have about 80
_REPEATS, _GROUPS, _CHOICES = 3, 4, 40  # of a regular expression, which comes from a stranger and must end soon
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initialisations that subtract from the base weights


class Record(NamedTuple):
    """One statement on the layers of a file. None: nothing stated. `conv_*`: for kernels larger than 1x1.

    binding: it must agree with the alpha tensors; otherwise it counts only where there are none.
    """

    place: str
    alpha: float | None = None
    rank: float | None = None
    root: bool = False
    alphas: Mapping[re.Pattern, float] = {}
    ranks: Mapping[re.Pattern, float] = {}
    conv_alpha: float | None = None
    conv_rank: float | None = None
    binding: bool = True


def scale_of(
    module: str, rank: int, alpha: float | None, records: Sequence[Record], kernel: int = 1
) -> tuple[float, str]:
    """The scale of the layer `module` and the place that states it.

    rank: of its tensors. alpha: its alpha tensor's value; None: it has none. kernel: a convolution's width.
    Raises ValueError, which names both, where two places contradict each other, or a record and the tensors' rank.
    """
    if not rank:
        return 1.0, NO_RECORD
    found: list[tuple[float, str]] = []
    for record in records:
        if alpha is not None and not record.binding:
            continue
        conv = kernel > 1
        own_rank = record.conv_rank if conv and record.conv_rank is not None else record.rank
        own_alpha = record.conv_alpha if conv and record.conv_alpha is not None else record.alpha
        own_rank = _matching(record.ranks, module, own_rank)
        own_alpha = _matching(record.alphas, module, own_alpha)
        if own_rank not in (None, rank):
            raise ValueError(f"{module} has rank {rank} by its tensors, but {own_rank:g} by {record.place}")
        if own_alpha is not None:
            found.append((own_alpha / (math.sqrt(rank) if record.root else rank), record.place))
        elif record.alphas:
            raise ValueError(f"{record.place} states no alpha for {module}")
    if alpha is not None:
        found.append((alpha / rank, "alpha tensors"))
    for scale, place in found[1:]:
        if not math.isclose(scale, found[0][0], rel_tol=TOLERANCE):
            raise ValueError(f"{module} has scale {found[0][0]:g} by {found[0][1]}, but {scale:g} by {place}")
    return found[0] if found else (1.0, NO_RECORD)


def _matching(patterns: Mapping[re.Pattern, float], module: str, default: float | None) -> float | None:
    """The value of the first pattern that matches, as peft's `get_pattern_key` finds it."""
    if patterns and len(module) > _LONGEST:
        raise ValueError(f"{module[:60]}...: the name of a layer has {len(module)} characters")
    return next((value for pattern, value in patterns.items() if pattern.match(module)), default)


def scale_records(header: Mapping[str, str]) -> list[Record]:
    """All that a header states of its layers' scale and rank. header: a safetensors file's metadata; peft's
    adapter_config.json is expected under that name. Raises ValueError, which names the key, for what cannot be read.
    """
    records = [
        record
        for key in (HEADER, CONFIG)
        if key in header
        for record in _peft(_json(header[key], key), f"the header's {key}" if key == HEADER else key)
    ]
    records += _kohya(header)
    if "ot_config" in header:
        own = _json(header["ot_config"], "ot_config")
        alpha, rank = (_number(own.get(key), f"ot_config: {key}") for key in ("lora_alpha", "lora_rank"))
        records.append(Record("the header's ot_config", alpha, rank, binding=False))
    values = {key: _number(header[key], key) for key in (*ALPHAS, *RANKS) if key in header}
    if root := next((key for key in ROOTS if _flag(header.get(key), key)), None):
        values[root] = 1.0
    for key, value in values.items():
        if key in ALPHAS:
            records.append(Record(f"the header's {key}", alpha=value, root=root is not None))
        elif key in RANKS:
            records.append(Record(f"the header's {key}", rank=value))
    if root and not any(key in ALPHAS for key in values):
        raise ValueError(f"the header's {root} is of no use without lora_alpha")
    return records


def without_scale(header: Mapping[str, str]) -> dict[str, str]:
    """The header without what states a scale: for a file whose tensors state it, or need none."""
    return {key: value for key, value in header.items() if key not in STATED}


def rank_record(ranks: Mapping[str, int], prefix: str) -> dict[str, str]:
    """Header that states scale 1 for layers of these ranks, {} where they have one rank, which needs no statement.

    Without it diffusers takes the first layer's rank for the alpha of all layers.
    """
    if len(set(ranks.values())) < 2:
        return {}
    values = list(ranks.values())
    common = max(values, key=values.count)
    others = {f"^{module}": rank for module, rank in ranks.items() if rank != common}
    config = {"r": common, "lora_alpha": common, "rank_pattern": others, "alpha_pattern": others}
    config |= {"target_modules": sorted(ranks), "use_rslora": False}
    return {HEADER: json.dumps({f"{prefix}.{key}" if prefix else key: value for key, value in config.items()})}


def _peft(config: Mapping, place: str) -> Iterable[Record]:
    """peft's LoraConfig, of a pipeline with one component's name before every key."""
    if prefix := next((word for word in _OWN if any(key.startswith(word) for key in config)), None):
        config = {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}
    else:
        config = {key: value for key, value in config.items() if not _COMPONENT.match(key)}
    if str(config.get("peft_type") or "LORA") != "LORA":
        raise ValueError(f"{place}: a {config['peft_type']} adapter, not a LoRA; train or export a LoRA")
    used = [key for key in _MORE if config.get(key)]
    used += [f"bias={config['bias']}"] if config.get("bias", "none") not in (None, "none") else []
    if used:
        name = "DoRA (use_dora)" if used[0] == "use_dora" else used[0]
        raise ValueError(f"{place}: made with {name}, which adds more than up @ down; only plain LoRAs are read")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASE):
        raise ValueError(
            f"{place}: init_lora_weights={start} changed the base's weights too, which are not in the file; convert "
            "it with peft (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    if not any(key in config for key in ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")):
        if nested := [key for key, value in config.items() if isinstance(value, Mapping)]:
            raise ValueError(
                f"{place}: its settings are inside {nested[0][:60]!r}, where neither peft nor diffusers writes them; "
                "write them at the top, as peft's LoraConfig.to_dict() gives them"
            )
        return
    alphas, ranks = (_patterns(config.get(key), f"{place}: {key}") for key in ("alpha_pattern", "rank_pattern"))
    alpha, rank = _number(config.get("lora_alpha"), f"{place}: lora_alpha"), _number(config.get("r"), f"{place}: r")
    if alpha is None and not alphas:
        raise ValueError(f"{place}: states no lora_alpha")
    yield Record(place, alpha, rank, _flag(config.get("use_rslora"), f"{place}: use_rslora"), alphas, ranks)


def _kohya(header: Mapping[str, str]) -> Iterable[Record]:
    """The flags of sd-scripts and LyCORIS. The latter's alpha tensors hold what its rs_lora makes of the flag."""
    if not any(key in header for key in ("ss_network_alpha", "ss_network_dim")):
        return
    alpha, rank = (_number(header.get(f"ss_network_{key}"), f"ss_network_{key}") for key in ("alpha", "dim"))
    text = header.get("ss_network_args", "")
    args = _json(text, "ss_network_args") if text.strip().lower() not in _NOT_A_NUMBER else {}
    names = ("conv_alpha", "conv_dim")
    conv_alpha, conv_rank = (_number(args.get(key), f"ss_network_args: {key}") for key in names)
    sd_scripts = header.get("ss_network_module", "networks.lora").startswith("networks.")
    if sd_scripts and conv_rank is not None and conv_alpha is None:
        conv_alpha = 1.0  # its default
    root = _flag(args.get("rs_lora"), "ss_network_args: rs_lora")
    binding = sd_scripts and not _VARIES & set(args)
    alpha = rank if alpha == 0 else alpha  # both mean: the rank
    place = "the header's ss_network_alpha and ss_network_dim"
    yield Record(place, alpha, rank, root, conv_alpha=conv_alpha, conv_rank=conv_rank, binding=binding)


def _json(text: str, key: str) -> Mapping:
    try:
        return json_object(text)
    except ValueError:
        raise ValueError(f"{key}: not the JSON object expected there ({text[:60]!r})") from None


def _number(value: object, key: str) -> float | None:
    """None where nothing is stated. bool is an int in Python, and no number here."""
    if value is None or (isinstance(value, str) and value.strip().lower() in _NOT_A_NUMBER):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{key}: not a number ({str(value)[:60]!r})")
    return number


def _flag(value: object, key: str) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False, "none": False, "": False}
    word = str("" if value is None else value).strip().lower()
    if word not in words:
        raise ValueError(f"{key}: neither true nor false ({word[:60]!r})")
    return words[word]


def _patterns(value: object, key: str) -> dict[re.Pattern, float]:
    """peft's {regular expression: number}, without the names of wrappers, which the layers' names lack too."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{key}: not a table of layers ({str(value)[:60]!r})")
    patterns = {}
    for name, number in value.items():
        if _may_not_end(name):
            raise ValueError(f"{key}: {name[:60]!r} has repetitions that could take for ever; name the layers in full")
        try:
            pattern = re.compile(rf"(.*\.)?({_WRAPPED.sub('', name)})$")
        except (re.error, RecursionError, OverflowError):
            raise ValueError(f"{key}: {name[:60]!r} is not a regular expression") from None
        if (stated := _number(number, f"{key}: {name[:60]}")) is not None:
            patterns[pattern] = stated
    return patterns


def _may_not_end(pattern: str) -> bool:
    """True if matching could take more than seconds: a repeated group, or more repetitions or choices than any list of
    layers needs. A layer's name, or the end of one, has none of them.
    """
    plain = re.sub(r"\\d[*+](?!\\d)", "", pattern)  # numbers end at the next dot
    plain = re.sub(r"\[\^?\]?[^\]]*\]", "x", re.sub(r"\\.", "x", plain, flags=re.DOTALL))
    plain, groups = re.sub(r"(?<=[*+?}])[?+]", "", plain), plain.count("(")  # lazy and possessive ones count once
    return (
        bool(re.search(r"\)[*+{]", plain))
        or len(re.findall(r"(?<!\()[*+?{]", plain)) > _REPEATS
        or groups > _GROUPS
        or (groups > 1 and plain.count("|") > _CHOICES)
    )
