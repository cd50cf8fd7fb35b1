"""Rationales rated by people and by a judge model, and how each metric agrees with people."""
