"""Errors and command-line parser; files that are complete when they have their name."""
