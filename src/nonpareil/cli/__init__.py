"""Floor 6: the command line. Parse, call a job, print."""
