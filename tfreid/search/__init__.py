"""Asking: a description in, a ranked answer with pictures and reasons out. Floor 4."""
