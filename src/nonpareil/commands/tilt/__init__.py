"""`nonpareil tilt`: a vocabulary tilt, counted from stored groups without any training."""
