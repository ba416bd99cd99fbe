"""Noise that is a function of (seed, number of the sample): the same in every process, on every device."""

import hashlib

import torch
from torch import Generator, Tensor


def gaussian(shape: tuple[int, ...], noise: list[Generator], like: Tensor) -> Tensor:
    """Standard normal (B,...) in `like`'s dtype and on its device, sample i drawn on the CPU from noise[i]: the same
    on all devices.
    """
    if len(noise) != shape[0]:
        raise ValueError(f"{len(noise)} generators for a batch of {shape[0]}")
    drawn = torch.stack([torch.randn(shape[1:], generator=generator) for generator in noise])
    return to_device(drawn.to(like.dtype), like.device)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """`values` of the CPU on `device`. A GPU copies from pinned memory, so that the host doesn't wait for it."""
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


def generators(seed: int, first: int, count: int) -> list[Generator]:
    """One generator per sample first .. first + count - 1 of an endless stream, by (seed, number) alone."""
    return [Generator().manual_seed(_mix(seed, number)) for number in range(first, first + count)]


def _mix(seed: int, number: int) -> int:
    """Two integers -> one 63-bit seed, well spread (splitmix64): neighbours must not give related noise."""
    x = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2**64 - 1)
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (x ^ (x >> 31)) >> 1


def noise_of(seed: int, name: str, member: int) -> Generator:
    """The noise of one prediction of one image, by (seed, file name, member of the ensemble) alone.

    So it does not depend on the batch, the process or the other images in the folder.
    """
    digest = hashlib.sha256(f"{seed}/{member}/{name}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
