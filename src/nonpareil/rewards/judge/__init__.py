"""A chat model as a pairwise judge: which pairs are judged, what is asked, the answers kept, the reward of them."""
