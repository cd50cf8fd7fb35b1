"""Programs around mmed that are no part of the library."""
