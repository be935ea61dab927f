"""The command ``odise-mm``, with one module per subcommand.

:mod:`odise_mm.cli.main` lists the subcommands. No module imports torch or MMEngine before the
arguments are parsed, so that ``--help`` is fast.
"""
