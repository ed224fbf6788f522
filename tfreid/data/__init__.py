"""Annotation tables, data sets, synthetic people and the input pipeline. Floor 1."""
