"""The command line: parses, calls the library and prints.

Data goes to stdout, progress and messages to stderr. Exit 0: done; 1: failed; 2: wrong usage. Commands are loaded when
they are run, so `lance-prep --help` imports click and nothing else.
"""

from lance_prep.cli.main import main

__all__ = ["main"]
