"""Pre-training of a small CLIP and a small latent diffusion model on the toy world."""
