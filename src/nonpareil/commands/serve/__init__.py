"""`nonpareil serve`: best-of-N behind OpenAI's protocol, of a model here or of any server's."""
