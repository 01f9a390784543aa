"""Rules that remove a normalization by changing the weights of a layer beside it."""
