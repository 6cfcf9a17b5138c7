"""A room per command: its steps, callable from Python too."""
