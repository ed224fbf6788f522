"""Retrieval evaluation: from a joint space and a test split to the numbers of the tables."""
