"""Floor 3: one file a method; numbers only, no models."""
