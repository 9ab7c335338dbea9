"""Learning rate and batch: basins of one cell, the surface over all, and what to recommend."""
