"""`python -m positional_heads` is the command line."""

from positional_heads.cli import main

main()
