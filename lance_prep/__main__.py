"""`python -m lance_prep`: the same as `lance-prep`."""

from lance_prep.cli import main

main()
