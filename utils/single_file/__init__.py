"""A whole Stable Diffusion in one .safetensors or .ckpt file, as model sites and ComfyUI's folders have them.

`reading` finds out from the keys which architecture it is, and reads it; `parts` builds UNet, VAE, text encoder,
tokenizer and schedule from it. The configurations (sd1/, sd2/) and CLIP's vocabulary lie here: no hub is needed.
"""
