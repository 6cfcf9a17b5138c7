"""All that a user can say: the settings of the commands, from flags and from YAML."""
