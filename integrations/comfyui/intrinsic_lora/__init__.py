"""Nodes for LoRAs that predict surface normals, depth, albedo and shading in a single UNet pass (arXiv 2311.17137).

To install, copy this folder into ComfyUI's custom_nodes/. It needs no packages that ComfyUI does not bring along.
"""

from .nodes import NODES

NODE_CLASS_MAPPINGS = {name: kind for name, (kind, _) in NODES.items()}
NODE_DISPLAY_NAME_MAPPINGS = {name: title for name, (_, title) in NODES.items()}
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
