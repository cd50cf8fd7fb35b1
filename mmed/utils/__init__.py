"""Errors and the option parser; files, journals and fingerprints."""
