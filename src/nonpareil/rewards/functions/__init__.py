"""Rewards that are Python functions, run in this process or in one of their own."""
