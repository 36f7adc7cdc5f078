"""Formats: how a file's schema is found, how it is cut into pieces, and how its rows are read."""
