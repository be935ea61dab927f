"""Captioners: what a diffusion model is told about an image."""
