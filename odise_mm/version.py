"""Version of odise_mm, in a module of its own so that setup.py can read it without an import."""

__version__ = "0.1.0"
