"""A room a command: its steps, callable from Python too."""
