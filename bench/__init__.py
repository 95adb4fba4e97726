"""Measurements: ``python -m bench linear | optim | model | demo | digits | readme``."""
