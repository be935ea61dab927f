"""Finding, changing, checking and building of configs."""
