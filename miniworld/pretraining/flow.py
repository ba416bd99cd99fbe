"""The flow transformer: an SD3Transformer2DModel that learns to generate scenes on mini-sd's VAE and text encoder.

Rectified flow (arXiv 2209.03003; Stable Diffusion 3, arXiv 2403.03206). For an image's latents z0 (scaled to unit
variance), eps ~ N(0, I) and a time s in 0..1:

    z_s = (1 - s) z0 + s eps;    mse(transformer(z_s, s, c), eps - z0)

Half of the times are logit-normal, as in Stable Diffusion 3, and half uniform, so that nearly clean latents, which the
single step reads, are trained too. The caption is empty for one image in ten, for guidance. The transformer sees only
latents of finished images and captions, never a normal, depth, albedo or shading map.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from miniworld.pretraining.generator import DROPPED, GUIDANCE, Latents, decode, fingerprint
from miniworld.pretraining.random_sd import PREFIX
from miniworld.pretraining.stage import Stage, save_atomically
from miniworld.pretraining.vae import save_sheet

NAME = "flow"
WIDTH, LAYERS, HEADS, PATCH = 160, 6, 4, 2
ABSENT = 256  # tokens that the pipeline puts, all zeros, in the place of T5's
TIMES = 1000  # the transformer's timestep is 1000 s


class PlainJointAttention:
    """diffusers' JointAttnProcessor2_0 as two products and a softmax: the backward pass of fused attention is the
    slowest kernel on a CPU. Only for transformers without normalised queries and keys.

    repeats: how many times the last text token counts. The pipeline appends ABSENT zeros to the text. They have no
    positions, so they stay equal to each other through all layers, and one that counts ABSENT times, exp(score) *
    ABSENT in the softmax, gives the same output for a quarter of the work.
    """

    def __call__(
        self, attn, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask=None, repeats: int = 1
    ) -> tuple[Tensor, Tensor]:
        pairs = ((attn.to_q, attn.add_q_proj), (attn.to_k, attn.add_k_proj), (attn.to_v, attn.add_v_proj))
        q, k, v = (
            split(torch.cat([image(hidden_states), text(encoder_hidden_states)], 1), attn.heads)
            for image, text in pairs
        )
        scores = torch.bmm(q * q.shape[-1] ** -0.5, k.transpose(1, 2))
        if repeats > 1:
            scores[..., -1] += math.log(repeats)
        mixed = torch.bmm(scores.softmax(-1).to(v.dtype), v).unflatten(0, (-1, attn.heads))
        mixed = mixed.transpose(1, 2).flatten(2)
        image, text = mixed.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], 1)
        return attn.to_out[0](image), text if attn.context_pre_only else attn.to_add_out(text)


def split(x: Tensor, heads: int) -> Tensor:
    """(B,N,heads*d) -> (B*heads,N,d)"""
    return x.unflatten(2, (heads, -1)).transpose(1, 2).flatten(0, 1)


def build_flow(
    text_width: int, side: int, width: int = WIDTH, layers: int = LAYERS, heads: int = HEADS, patch: int = PATCH
) -> SD3Transformer2DModel:
    """latents (B,4,side,side), timestep 1000 s, text (B,L,2*text_width), pooled (B,2*text_width) -> (B,4,side,side).

    Initialised as DiT (arXiv 2212.09748, section 3.2): Xavier's linear layers; modulations and the last layer zero, so
    that every block starts as the identity.
    """
    transformer = SD3Transformer2DModel(
        sample_size=side,
        patch_size=patch,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        attention_head_dim=width // heads,
        num_attention_heads=heads,
        joint_attention_dim=2 * text_width,
        pooled_projection_dim=2 * text_width,
        caption_projection_dim=width,
        pos_embed_max_size=4 * side // patch,
    )
    zero = ("norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out")
    for name, module in transformer.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
            nn.init.zeros_(module.bias)
            if "timestep_embedder" in name:
                nn.init.normal_(module.weight, std=0.02)
            if name.endswith(zero):
                nn.init.zeros_(module.weight)
    transformer.set_attn_processor(PlainJointAttention())
    return transformer


@dataclass
class Text:
    """The result of the pipeline's `encode_prompt` for captions: states (N,L,2D), the first encoder's next to the
    second's, and pooled (N,2D). mini-flow's two encoders are the same one, so only one half is kept.
    """

    states: Tensor  # (N,L,D)
    pooled: Tensor  # (N,D)

    def take(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """States (B,L,2D) and pooled (B,2D) of captions `chosen` (B,)."""
        return self.states[chosen].float().repeat(1, 1, 2), self.pooled[chosen].float().repeat(1, 2)


def with_projection(encoder: CLIPTextModel) -> CLIPTextModelWithProjection:
    """The same text encoder as Stable Diffusion 3 wants it, with a projection of the pooled state: the identity."""
    width = encoder.config.hidden_size
    whole = CLIPTextModelWithProjection(CLIPTextConfig.from_dict(encoder.config.to_dict() | {"projection_dim": width}))
    state = {PREFIX + key.removeprefix(PREFIX): weight for key, weight in encoder.state_dict().items()}
    missing, unknown = whole.load_state_dict(state | {"text_projection.weight": torch.eye(width)}, strict=False)
    if unknown or any(not key.endswith("position_ids") for key in missing):
        raise ValueError(
            f"this version of transformers names a text encoder's weights otherwise: {missing}, {unknown}"
        )
    return whole.requires_grad_(False).eval()


@torch.no_grad()
def encode_text(encoder: CLIPTextModelWithProjection, tokens: Tensor) -> Text:
    """States and pooled state of token ids (N,L), as in Stable Diffusion 3 (arXiv 2403.03206, section 4): those before
    the last layer, and that of the end of the text, projected.
    """
    found = [encoder(part, output_hidden_states=True) for part in tokens.split(256)]
    return Text(torch.cat([each.hidden_states[-2] for each in found]), torch.cat([each.text_embeds for each in found]))


def cached_text(encoder: CLIPTextModelWithProjection, data: Latents, folder: Path) -> Text:
    """The captions of all images and, last, the empty one; float16, kept in `folder` for the next run."""
    path = folder / f"text-{fingerprint(encoder):08x}-{len(data.tokens)}.pt"
    if not path.exists():
        text = encode_text(encoder, torch.cat([data.tokens, data.empty[None]]))
        save_atomically((text.states.half(), text.pooled.half()), path)
    return Text(*torch.load(path, weights_only=True))


def flow_stage(
    transformer: SD3Transformer2DModel,
    data: Latents,
    text: Text,
    vae,
    folder: Path,
    batch: int,
    half: bool,
    **settings,
) -> Stage:
    """Train `transformer` on `data` and `text`, the captions of `cached_text`."""

    def loss(step: int, rng: Generator) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return {"loss": flow_loss(transformer, data, text, batch, rng)}

    def sheet(modules: dict, path: Path, count: int = 10, seeds: int = 3) -> None:
        chosen = torch.arange(count).repeat(seeds)
        z = sample_flow(modules["transformer"], *text.take(chosen), *text.take(torch.tensor([-1])), guidance=GUIDANCE)
        save_sheet(list(decode(vae, z / data.scale).split(count)), path)

    return Stage(NAME, folder, {"transformer": transformer}, loss, sheet, **settings)


def flow_loss(transformer: SD3Transformer2DModel, data: Latents, text: Text, batch: int, rng: Generator) -> Tensor:
    """mse of the velocity eps - z0, a scalar in fp32.

    Half of the batches have the pipeline's ABSENT zeros after the text, and half do not: they are its default, and
    without them (no T5, `max_sequence_length` 0) sampling and the training of a LoRA are several times as fast.
    """
    chosen = torch.randint(len(data.mean), (batch,), generator=rng)
    z0 = data.draw(chosen, rng)
    dropped = torch.rand(batch, generator=rng) < DROPPED
    states, pooled = text.take(torch.where(dropped, len(text.pooled) - 1, chosen))
    s = flow_times(batch, rng)
    eps = torch.randn(z0.shape, generator=rng)
    z_s = torch.lerp(z0, eps, s.view(-1, 1, 1, 1))
    absent = torch.rand(1, generator=rng).item() < 0.5
    return F.mse_loss(velocity(transformer, z_s, s, states, pooled, absent).float(), eps - z0)


def flow_times(count: int, rng: Generator) -> Tensor:
    """s (count,) in 0..1: the first half logit-normal (arXiv 2403.03206, equation 19), the others uniform."""
    normal = torch.randn(count // 2, generator=rng).sigmoid()
    return torch.cat([normal, torch.rand(count - count // 2, generator=rng)])


def velocity(
    transformer: SD3Transformer2DModel, z_s: Tensor, s: Tensor, states: Tensor, pooled: Tensor, absent: bool = False
) -> Tensor:
    """The transformer's eps - z0, (B,4,h,w), of z_s (B,4,h,w) at times s (B,). absent: as with ABSENT zeros after the
    text's states (B,L,2D).
    """
    if absent:
        states = F.pad(states, (0, 0, 0, 1))
    return transformer(
        hidden_states=z_s,
        encoder_hidden_states=states,
        pooled_projections=pooled,
        timestep=TIMES * s,
        joint_attention_kwargs={"repeats": ABSENT if absent else 1},
    ).sample


@torch.no_grad()
def sample_flow(
    transformer: SD3Transformer2DModel,
    states: Tensor,
    pooled: Tensor,
    no_states: Tensor,
    no_pooled: Tensor,
    seed: int = 0,
    steps: int = 20,
    guidance: float = 1,
) -> Tensor:
    """Captions' states (B,L,2D) and pooled (B,2D), and those of "" (1,...) -> scaled latents (B,4,h,w).

    Euler's method at s = 1, 1 - 1/steps .. 1/steps, the trailing spacing of mini-sd's measurements: the first step
    begins at pure noise and the last ends at the image. Guidance 1 takes half the time.
    """
    side = transformer.config.sample_size
    noise = torch.randn(len(states), 4, side, side, generator=Generator().manual_seed(seed))
    drawn = []
    for z, text, end in zip(noise.split(32), states.split(32), pooled.split(32)):
        if guidance != 1:
            text = torch.cat([no_states.expand_as(text), text])
            end = torch.cat([no_pooled.expand_as(end), end])
        for step in range(steps, 0, -1):
            doubled = z if guidance == 1 else z.repeat(2, 1, 1, 1)
            with torch.autocast("cpu", torch.bfloat16):
                v = velocity(transformer, doubled, torch.full((len(doubled),), step / steps), text, end).float()
            if guidance != 1:
                uncond, cond = v.chunk(2)
                v = uncond + guidance * (cond - uncond)
            z = z - v / steps
        drawn.append(z)
    return torch.cat(drawn)
