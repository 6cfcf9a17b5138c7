"""Code that a user names: loaded, run within limits, and what it changes of this process given back."""
