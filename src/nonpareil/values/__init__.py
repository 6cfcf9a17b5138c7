"""Values of prefixes: fitted on stored groups, measured on others, and made into credits."""
