"""Tensors to pictures and values: what the panels show and what inference writes."""

import base64
import io

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from utils.intrinsics import Intrinsic
from utils.maps.conventions import to_srgb

CAPTION_HEIGHT = 16  # pixels


def to_uint8(picture: Tensor) -> np.ndarray:
    """(3,H,W) in [-1,1], clamped -> uint8 (H,W,3), truncated as the released code does: 255 (x / 2 + 0.5)."""
    pixels = picture.detach().float().clamp(-1, 1).cpu().permute(1, 2, 0).numpy()
    return (255 * (pixels * 0.5 + 0.5)).astype(np.uint8)


def depth_to_uint8(picture: Tensor) -> np.ndarray:
    """(3,H,W), not clamped -> uint8 (H,W): min-max over all three channels, mean over channels, truncated.

    The released inference's rule. A constant picture has no range to stretch and comes out black.
    """
    picture = picture.detach().float()
    low, high = picture.min(), picture.max()
    stretched = (picture - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)
    return (stretched.mean(0).cpu().numpy() * 255.0).astype(np.uint8)


def prediction_to_uint8(prediction: Tensor, intrinsic: Intrinsic) -> np.ndarray:
    """A prediction (3,H,W), not clamped -> the picture that inference writes: (H,W,3), or (H,W) of a grey one."""
    if intrinsic.kind == "depth":
        return depth_to_uint8(prediction)
    pixels = to_uint8(grey(prediction) if intrinsic.grey else prediction)
    return pixels[..., 0] if intrinsic.grey else pixels


def prediction_to_values(prediction: Tensor, intrinsic: Intrinsic) -> np.ndarray:
    """A prediction (3,H,W), not clamped -> float32 values.

    Normals: unit vectors (H,W,3), x right, y down, z forward. Depth: (H,W), affine in metres, near = large.
    Colours: (H,W,3), or (H,W) of a grey one, coded as the intrinsic says, about [0,1], not clamped.
    """
    prediction = prediction.float()
    if intrinsic.kind == "depth":
        return prediction.mean(0).cpu().numpy()
    values = unit_normals(prediction) if intrinsic.kind == "normals" else prediction / 2 + 0.5
    return (values.mean(0) if intrinsic.grey else values.permute(1, 2, 0)).cpu().numpy()


def prediction_picture(prediction: Tensor, intrinsic: Intrinsic) -> Tensor:
    """How a panel shows a prediction (3,H,W): as it is, a grey one by its mean."""
    return grey(prediction) if intrinsic.grey else prediction


def truth_picture(gt: Tensor, valid: Tensor, intrinsic: Intrinsic) -> Tensor:
    """How a panel shows ground truth (C,H,W), valid (1,H,W): picture (3,H,W) in [-1,1], invalid pixels black."""
    if intrinsic.kind == "depth":
        return depth_picture(gt, valid)
    if intrinsic.kind == "normals":
        return torch.where(valid, gt, -1.0)
    return colour_picture(gt, valid, intrinsic)


def grey(picture: Tensor) -> Tensor:
    """(3,H,W) -> its mean over channels, three times."""
    return picture.mean(0, keepdim=True).expand(3, -1, -1)


def unit_normals(picture: Tensor) -> Tensor:
    """A predicted normal map (3,H,W), not clamped -> unit vectors (3,H,W) in the label's frame."""
    return torch.nn.functional.normalize(picture.float(), dim=0, eps=1e-12)


def depth_picture(gt: Tensor, valid: Tensor) -> Tensor:
    """Depth (1,H,W) in metres, valid (1,H,W) -> label-like picture (3,H,W) in [-1,1]: near = white, invalid black.

    Linear between the 1st and 99th percentile of the valid depths, clipped: no value wraps around, no invalid zero
    moves the range (both happen in the released code).
    """
    if not valid.any():
        return torch.full((3, *gt.shape[1:]), -1.0)
    near, far = np.percentile(gt[valid].double().numpy(), [1, 99])
    shade = 1 - ((gt - near) / max(far - near, 1e-6)).clamp(0, 1)
    return torch.where(valid, 2 * shade - 1, -1.0).expand(3, -1, -1)


def colour_picture(gt: Tensor, valid: Tensor, intrinsic: Intrinsic) -> Tensor:
    """A colour (3,H,W), linear in [0,1], valid (1,H,W) -> picture coded as labels are, in [-1,1], invalid black."""
    coded = gt.clamp(0, 1).double()
    coded = (torch.from_numpy(to_srgb(coded.numpy())) if intrinsic.coding == "srgb" else coded).float()
    return torch.where(valid, 2 * coded - 1, -1.0)


def black(picture: Tensor) -> Tensor:
    """A black picture of this one's size: what the ground-truth column shows where nothing is measured."""
    return torch.full_like(picture, -1.0)


def strip(pictures: list[Tensor]) -> Image.Image:
    """Pictures (3,H,W) in [-1,1] side by side."""
    return Image.fromarray(np.hstack([to_uint8(picture) for picture in pictures]))


def sheet(rows: list[Image.Image], columns: list[str]) -> Image.Image:
    """Strips under each other, with the columns' names above; strips of another width are scaled to the first's."""
    rows = [rows[0], *(row if row.width == rows[0].width else _scaled(row, rows[0].width) for row in rows[1:])]
    width, side = rows[0].width, rows[0].width // len(columns)
    page = Image.new("RGB", (width, CAPTION_HEIGHT + sum(row.height for row in rows)), "white")
    draw = ImageDraw.Draw(page)
    for i, name in enumerate(columns):
        draw.text((i * side + 2, 1), name, fill="black")
    top = CAPTION_HEIGHT
    for row in rows:
        page.paste(row, (0, top))
        top += row.height
    return page


def _scaled(row: Image.Image, width: int) -> Image.Image:
    return row.resize((width, max(1, round(row.height * width / row.width))))


def small(picture: Image.Image, side: int) -> Image.Image:
    """A copy whose longer side is at most `side` pixels."""
    picture = picture.copy()
    picture.thumbnail((side, side))
    return picture


def data_uri(picture: Image.Image, kind: str, **options: object) -> str:
    """A picture as an address that holds it, for pages that load nothing. kind: PNG or JPEG; options: its writer's."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()
