"""The command line: flags and YAML read, a command run, its result shown."""
