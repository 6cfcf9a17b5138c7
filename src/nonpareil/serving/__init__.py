"""Best-of-N behind OpenAI's protocol: N drawn of an upstream, scored, and one of them answered."""
