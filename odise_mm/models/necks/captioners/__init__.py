"""Captioners, which compute the condition of a diffusion model from an image."""
