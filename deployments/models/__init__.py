"""One file per served endpoint, and the SVD sampler they share."""
