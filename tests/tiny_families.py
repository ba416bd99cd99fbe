"""Tiny random models of the real classes of every family of bases, saved by their own diffusers pipelines.

`save(family, folder)` writes what `DiffusionPipeline.from_pretrained` reads, in under a second and without a hub. All
networks have more than one block of each kind, so that a layer that only the first or the last block has (SD 3's
second attention, its last block without a text stream) is there and is missing elsewhere.

Weights are random, except for what the defaults would hide: biases and gates that libraries start at zero are drawn as
well, because a network whose output does not depend on an input cannot show that the input is wrong.
"""

import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from miniworld.pretraining.random_sd import WORDS, build_tokenizer

QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|image_pad|>", "<|video_pad|>")
QWEN_CHAT = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""  # the parts of Qwen3's own that depend on what the pipelines ask for


def qwen_tokenizer() -> transformers.PreTrainedTokenizerBase:
    """Qwen's kind of tokenizer, with a chat template. Every byte is one token."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*sorted(ByteLevel.alphabet()), *QWEN_SPECIAL]
    added = {
        str(tokens.index(token)): {"content": token, "special": True, "lstrip": False, "rstrip": False}
        for token in QWEN_SPECIAL
    }
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": added,
        "additional_special_tokens": list(QWEN_SPECIAL[1:]),
        "pad_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "chat_template": QWEN_CHAT,
        "padding_side": "right",
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        Path(folder, "merges.txt").write_text("#version: 0.2\n")
        Path(folder, "tokenizer_config.json").write_text(json.dumps(settings))
        return transformers.Qwen2TokenizerFast.from_pretrained(folder)


def t5_tokenizer() -> transformers.PreTrainedTokenizerBase:
    """T5's kind of tokenizer (unigrams) in which each of WORDS is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    vocabulary += [(f"▁{word}", -2.0) for word in sorted(set(WORDS))]
    vocabulary += [(chr(code), -5.0) for code in range(33, 127)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, 2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(str(Path(folder, "tokenizer.json")))
        settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "pad_token": "<pad>", "eos_token": "</s>"}
        Path(folder, "tokenizer_config.json").write_text(json.dumps({**settings, "unk_token": "<unk>"}))
        return transformers.T5TokenizerFast.from_pretrained(folder)


def clip(tokenizer: CLIPTokenizer, width: int = 32, projected: bool = True) -> nn.Module:
    """A CLIP text encoder with three layers, whose last but one the pipelines read."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        projection_dim=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def vae(channels: int, scale: float, shift: float | None = None) -> nn.Module:
    """AutoencoderKL with latents of half the image's side; a shift means one without the convolutions around them."""
    return diffusers.AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=channels,
        sample_size=32,
        scaling_factor=scale,
        shift_factor=shift,
        force_upcast=shift is None,
        use_quant_conv=shift is None,
        use_post_quant_conv=shift is None,
    )


def qwen3(tokenizer: transformers.PreTrainedTokenizerBase, layers: int, kind: str) -> nn.Module:
    """Qwen3 of width 16, its `kind` of class."""
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=600,
    )
    return getattr(transformers, kind)(config)


def sdxl() -> dict:
    """Its text states are 64 wide, its pooled text 32, its six numbers of size 8 each."""
    tokenizer = build_tokenizer()
    return {
        "vae": vae(4, 0.13025),
        "text_encoder": clip(tokenizer, projected=False),
        "text_encoder_2": clip(tokenizer),
        "tokenizer": tokenizer,
        "tokenizer_2": build_tokenizer(),
        "unet": diffusers.UNet2DConditionModel(
            sample_size=16,
            layers_per_block=2,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 2),
            projection_class_embeddings_input_dim=32 + 6 * 8,
            cross_attention_dim=64,
            norm_num_groups=4,
        ),
        "scheduler": diffusers.EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
        "add_watermarker": False,
    }


def sd3(t5: bool = True) -> dict:
    """Three blocks: the first has the second attention of SD 3.5 medium, the last no text stream."""
    tokenizer = build_tokenizer()
    t5_words = t5_tokenizer() if t5 else None
    encoder = t5_words and transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=len(t5_words), d_model=80, d_kv=16, d_ff=64, num_layers=2, num_heads=4)
    )
    return {
        "vae": vae(16, 1.5305, 0.0609),
        "text_encoder": clip(tokenizer),
        "text_encoder_2": clip(tokenizer),
        "text_encoder_3": encoder,
        "tokenizer": tokenizer,
        "tokenizer_2": build_tokenizer(),
        "tokenizer_3": t5_words,
        "transformer": diffusers.SD3Transformer2DModel(
            sample_size=16,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=80,  # wider than both CLIPs side by side, as T5's is
            pooled_projection_dim=64,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
            pos_embed_max_size=24,
        ),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        "image_encoder": None,
        "feature_extractor": None,
    }


def flux2() -> dict:
    """FLUX.2-klein: two blocks of each kind, and a text encoder deep enough for hidden state 27."""
    tokenizer = qwen_tokenizer()
    autoencoder = diffusers.AutoencoderKLFlux2(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )
    with torch.no_grad():
        autoencoder.bn.running_mean.normal_()
        autoencoder.bn.running_var.uniform_(0.5, 2)
    return {
        "vae": autoencoder,
        "text_encoder": qwen3(tokenizer, 28, "Qwen3ForCausalLM"),
        "tokenizer": tokenizer,
        "transformer": diffusers.Flux2Transformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=48,
            timestep_guidance_channels=32,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "is_distilled": True,
    }


def z_image() -> dict:
    """Two layers after one refiner each of image and text."""
    tokenizer = qwen_tokenizer()
    return {
        "vae": vae(16, 0.3611, 0.1159),
        "text_encoder": qwen3(tokenizer, 3, "Qwen3Model"),
        "tokenizer": tokenizer,
        "transformer": diffusers.ZImageTransformer2DModel(
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[8, 4, 4],
            axes_lens=[1024, 64, 64],
        ),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def qwen_image() -> dict:
    """The VAE has two levels of half size each and another mean and deviation for every channel."""
    tokenizer = qwen_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    return {
        "vae": diffusers.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 2],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.1, 0.2, 0.3, 0.4],
            latents_std=[1.0, 2.0, 3.0, 4.0],
        ),
        "text_encoder": transformers.Qwen2_5_VLForConditionalGeneration(
            transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
        ),
        "tokenizer": tokenizer,
        "transformer": diffusers.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
        ),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }


FAMILIES: dict[str, tuple[str, Callable[[], dict]]] = {  # name -> the pipeline's class, its parts
    "sdxl": ("StableDiffusionXLPipeline", sdxl),
    "sd3": ("StableDiffusion3Pipeline", sd3),
    "sd3_without_t5": ("StableDiffusion3Pipeline", lambda: sd3(t5=False)),
    "flux2": ("Flux2KleinPipeline", flux2),
    "z_image": ("ZImagePipeline", z_image),
    "qwen_image": ("QwenImagePipeline", qwen_image),
}


def save(family: str, folder: Path, seed: int = 0) -> Path:
    """Write the family's pipeline into `folder` and return it. The same seed gives the same weights.

    Skips the test where the installed diffusers does not have the family yet.
    """
    name, parts = FAMILIES[family]
    try:
        kind = getattr(diffusers, name)
    except (AttributeError, RuntimeError):  # diffusers' own where transformers lacks what the pipeline imports
        pytest.skip(f"diffusers {diffusers.__version__} with transformers {transformers.__version__} has no {name}")
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        modules = parts()
        draw(part for part in modules.values() if isinstance(part, nn.Module))
    kind(**modules).save_pretrained(folder)
    return folder


def pipeline(folder: Path) -> diffusers.DiffusionPipeline:
    """The real pipeline of a folder of `save`, without a progress bar."""
    parts = json.loads((folder / "model_index.json").read_text()).items()
    absent = {part: None for part, kind in parts if kind == [None, None]}  # diffusers wants to be told again
    loaded = diffusers.DiffusionPipeline.from_pretrained(folder, **absent)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def draw(models: Iterable[nn.Module]) -> None:
    """Random numbers for all parameters that a library starts as zeros."""
    for model in models:
        for parameter in model.parameters():
            if not parameter.detach().any():
                nn.init.normal_(parameter, std=0.1)


def words(diode: Path, base: Path, output: Path, *more: object) -> list[str]:
    """The command line of a short training of a LoRA for normals."""
    found = ["--pretrained_model_name_or_path", base, "--train_data_dir", diode / "normals", "--output_dir", output]
    found += ["--pseudo_root", diode / "pseudo" / "normal", "--resolution", 32, "--train_batch_size", 2]
    found += ["--report_to", "none", "--validation_steps", 0, "--checkpointing_steps", 2, "--num_train_imgs", 8]
    return [str(word) for word in (*found, "--learning_rate", 1e-2, "--adam_epsilon", 1e-2, "--rank", 2, *more)]
