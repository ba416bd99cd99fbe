"""Image generators that are no Stable Diffusion, in plain PyTorch: what a LoRA needs of them."""
