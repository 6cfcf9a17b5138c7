"""Rewards that are Python functions, in this process or in one of their own."""
