"""What the tools of analysis share: models without memory, their parts, saved predictions."""
