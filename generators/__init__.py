"""Image generators other than Stable Diffusion, in plain PyTorch: a GAN and an autoregressive transformer."""
