"""Floor 3: where completions are drawn."""
