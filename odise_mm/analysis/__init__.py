"""What models cost and are made of, what they see, and what comes of saved predictions."""
