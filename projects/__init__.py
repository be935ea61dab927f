"""Plugins that live outside the package, registered by ``custom_imports`` of their configs."""
