"""Builder functions that return Keras functional models. Floor 1."""
