"""ComfyUI: workflows of stock nodes, a pack of nodes (intrinsic_lora/), and a check against the real ComfyUI."""
