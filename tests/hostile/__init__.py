"""Hostile inputs as data: commands, files, and what must hold."""
