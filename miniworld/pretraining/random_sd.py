"""A small Stable Diffusion with random weights, in Stable Diffusion's own folder format.

It has seen no image and generates noise. Tests use it where only shapes, gradients and file formats matter, and it is
the control for anything that is claimed to come from a *pretrained* generator.

    python -m miniworld.pretraining.random_sd --out random-sd            # like SD 1.5: epsilon, 4-channel UNet
    python -m miniworld.pretraining.random_sd --out random-sd21 --prediction_type v_prediction  # like SD 2.1
    python -m miniworld.pretraining.random_sd --out random-ip2p --in_channels 8     # like InstructPix2Pix's
"""

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from utils.cli import Parser, path_flag
from utils.errors import run

WORDS = """
a an and with of the in on by room yard walls wall floor ceiling ground sky lamp sun light plain striped checked
sphere spheres box boxes cylinder cylinders block blocks tree trees one two three four five six red orange yellow
green blue purple pink brown grey white black surface normal depth map albedo shading
""".split()  # each is one token: words of scene captions and the four tasks' prompts
TEXT_WIDTH = 64
CONTEXT_LENGTH = 77  # tokens, as CLIP's
PREFIX = "text_model."


def byte_pair_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Merges under which byte-pair encoding turns each of `words` into one token (`</w>` ends a word)."""
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in sorted(set(words))]
    merges = []
    while pairs := Counter(pair for piece in pieces for pair in pairwise(piece)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for piece in pieces:
            i = 0
            while i < len(piece) - 1:
                if (piece[i], piece[i + 1]) == best:
                    piece[i : i + 2] = ["".join(best)]
                i += 1
    return merges


def build_tokenizer(words: Sequence[str] = WORDS, length: int = CONTEXT_LENGTH) -> CLIPTokenizer:
    """A CLIP tokenizer in which each of `words` is one token. Other text is split into ASCII characters.

    Prompts are padded or cut to `length` tokens.
    """
    characters = [chr(code) for code in range(33, 127)]
    merges = byte_pair_merges(words)
    tokens = [*characters, *(c + "</w>" for c in characters), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        Path(folder, "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
        return CLIPTokenizer.from_pretrained(folder, model_max_length=length)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A two-layer CLIP text encoder: token ids (B,L) -> states (B,L,64), L the tokenizer's length (77)."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_vae(channels: tuple[int, ...] = (32, 64, 64), groups: int = 32, attention: bool = True) -> AutoencoderKL:
    """images (B,3,H,W) in [-1,1] -> latents (B,4,H/4,W/4).

    groups: groups of the normalisation. attention: whether the middle block has attention.
    """
    vae = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=groups,
        mid_block_add_attention=attention,
        sample_size=64,
        scaling_factor=4.0,  # about 1 / std of this VAE's random latents, so that the UNet sees unit variance
    )
    with torch.no_grad():
        vae.quant_conv.bias[4:] -= 10  # log-variance: narrow, like a trained VAE's posterior
    return vae


def build_unet(
    in_channels: int = 4, channels: tuple[int, ...] = (64, 128, 128), groups: int = 32
) -> UNet2DConditionModel:
    """latents (B,in_channels,16,16), t, text (B,L,64) -> (B,4,16,16). groups: groups of the normalisation."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=in_channels,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=groups,
    )


def build_scheduler(prediction_type: str = "epsilon") -> DDIMScheduler:
    """Stable Diffusion's noise schedule (1,000 steps, scaled-linear betas)."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def save_pipeline(folder: Path, tokenizer, text_encoder, vae, unet, scheduler) -> None:
    """Write the parts as a folder that `StableDiffusionPipeline.from_pretrained` reads."""
    transformers.utils.logging.set_verbosity_error()  # the import below warns about an unused image processor
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    from diffusers import StableDiffusionPipeline

    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    save_text_encoder(text_encoder, Path(folder, "text_encoder"))
    if hasattr(tokenizer, "backend_tokenizer"):  # transformers 5: vocab.json and merges.txt too, for older readers
        tokenizer.backend_tokenizer.model.save(str(Path(folder, "tokenizer")))


def save_text_encoder(text_encoder: CLIPTextModel, folder: Path) -> None:
    """Write config and weights into `folder`, under the key names of Stable Diffusion's own folders.

    transformers 5 omits PREFIX from the keys and reads both forms. 4.46 to 4.57 read only keys with it.
    """
    text_encoder.save_pretrained(folder)
    add_prefix(folder / "model.safetensors")


def add_prefix(file: Path) -> None:
    """Add PREFIX to every key of a saved text encoder that lacks it, in place."""
    state = {key.removeprefix(PREFIX): weight for key, weight in load_file(file).items()}
    save_file({PREFIX + key: weight for key, weight in state.items()}, file, {"format": "pt"})


def save_random_sd(
    folder: Path,
    seed: int = 0,
    prediction_type: str = "epsilon",
    in_channels: int = 4,
    channels: tuple[int, ...] = (64, 128, 128),
) -> None:
    """Write a randomly initialised Stable Diffusion with about 7 M parameters. The same seed gives the same weights.

    channels: the UNet's width at each of its three levels.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer()
        parts = (
            build_text_encoder(tokenizer),
            build_vae(),
            build_unet(in_channels, channels),
            build_scheduler(prediction_type),
        )
    save_pipeline(Path(folder), tokenizer, *parts)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--out", required=True, type=path_flag, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights (default: 0)")
    parser.add_argument("--prediction_type", choices=["epsilon", "v_prediction"], default="epsilon")
    parser.add_argument("--in_channels", type=int, choices=[4, 8], default=4, help="8: an image-conditioned UNet")
    args = parser.parse_args(argv)
    save_random_sd(args.out, args.seed, args.prediction_type, args.in_channels)
    print(f"{args.out}: a Stable Diffusion with RANDOM weights (seed {args.seed}); it generates noise")


if __name__ == "__main__":
    run(main)
