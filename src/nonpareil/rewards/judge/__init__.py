"""A chat model as a pairwise judge."""
