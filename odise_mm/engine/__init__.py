"""What drives training and evaluation: runner, loops, hooks."""
