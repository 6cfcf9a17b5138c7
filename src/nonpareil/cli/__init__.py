"""Floor 6: the command line. Parse, run a command, show what came of it."""
