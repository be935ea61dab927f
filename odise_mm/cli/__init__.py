"""The installed command ``odise-mm``: one module for each of its subcommands.

:mod:`odise_mm.cli.main` lists them. Nothing here imports torch or MMEngine before the arguments are
read, so that ``--help`` answers at once.
"""
