"""The command `tfreid`: `main.py` reads the name of a sub-command, whose module does the rest."""
