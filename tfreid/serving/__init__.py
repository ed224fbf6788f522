"""Serving: retrieval by exact search, and the exported model. Floor 4."""
