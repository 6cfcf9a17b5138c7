"""Floor 5: one module a command: options and `run`, callable from Python too."""
