"""Plugins outside the package, registered through ``custom_imports`` in their configs."""
