"""`python -m infer_kit`: the command line."""

from infer_kit.cli import main

main()
