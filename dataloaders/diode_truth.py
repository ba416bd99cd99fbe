"""DIODE's files of measured values (arXiv 1908.00463), and linear maps next to them, in this project's axes."""

from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.maps.conventions import unit_vectors
from utils.maps.files import read_npy
from utils.maps.known import known_pixels


def read_normals(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """DIODE's *_normal.npy -> (unit normals (H,W,3), x right, y down, z forward (OpenCV), as Omnidata v2
    predicts them; valid, bool (H,W)).

    DIODE's raw frame is x right, y up, z toward the viewer (OpenGL), so Y and Z are negated. Raw vectors are not
    always of unit length; `known_pixels` decides which are valid.
    """
    raw = read_npy(path)
    if raw.ndim != 3 or raw.shape[2] != 3 or raw.dtype.kind != "f":
        raise InputError(f"{path}: {raw.dtype} {raw.shape}, expected float (H, W, 3) normals")
    valid = known_pixels("normals", raw).pixels
    normals = np.zeros(raw.shape)
    normals[valid] = unit_vectors(raw[valid]) * (1, -1, -1)
    return normals, valid


def read_depth(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """DIODE's *_depth.npy and *_depth_mask.npy next to it -> (metres (H,W,1); where known, inside the mask)."""
    mask_path = path.with_name(path.name.replace("_depth.npy", "_depth_mask.npy"))
    depth, mask = read_npy(path), read_diode_mask(mask_path)
    depth = depth[..., 0] if depth.ndim == 3 and depth.shape[2] == 1 else depth
    if depth.ndim != 2 or depth.dtype.kind != "f":
        raise InputError(f"{path}: {depth.dtype} {depth.shape}, expected float (H, W, 1) metres")
    if mask.shape != depth.shape:
        raise InputError(f"{mask_path}: a mask of shape {mask.shape} for depth of shape {depth.shape}")
    return depth[..., None], known_pixels("depth", depth, mask).pixels


def read_diode_mask(path: Path) -> np.ndarray:
    """DIODE's *_depth_mask.npy -> bool (H,W), not zero = measured; its dtype varies between DIODE's files."""
    mask = read_npy(path)
    mask = mask[..., 0] if mask.ndim == 3 and mask.shape[2] == 1 else mask
    if mask.ndim != 2 or mask.dtype.kind not in "buif":
        raise InputError(f"{path}: {mask.dtype} {mask.shape}, expected a mask of numbers (H, W)")
    return mask.astype(bool)


def read_colour(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Linear float values (H,W) or (H,W,3) -> ((H,W,3), nominal range [0,1], scale arbitrary; where known)."""
    values = read_npy(path)
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[2] not in (1, 3) or values.dtype.kind != "f":
        raise InputError(f"{path}: {values.dtype} {values.shape}, expected linear float (H, W) or (H, W, 3)")
    valid = known_pixels("colour", values).pixels
    return np.broadcast_to(np.where(valid[..., None], values, 0), (*valid.shape, 3)), valid
