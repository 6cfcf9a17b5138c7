"""`nonpareil value` and `nonpareil credits`: what prefixes are worth, and credits made of it."""
