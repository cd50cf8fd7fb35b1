"""Programs that use mmed but are not part of the library."""
