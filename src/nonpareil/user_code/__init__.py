"""Code that a user names: loaded, called within limits, and its mess kept away from ours."""
