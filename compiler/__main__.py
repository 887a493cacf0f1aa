"""``python -m sparsec``: the command."""

from sparsec.cli import main

main()
