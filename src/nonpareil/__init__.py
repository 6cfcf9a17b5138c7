"""Nonpareil: one sample as good as the best of N."""

__version__ = "0.1.0"
