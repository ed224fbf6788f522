"""The step, the stages and what they write down. Floor 4."""
