"""`nonpareil evaluate`: how near a policy is to best-of-N of its reference."""
