"""Training of the models that stand for those of the web: a CLIP and a latent diffusion model."""
