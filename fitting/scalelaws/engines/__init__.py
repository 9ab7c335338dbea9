"""How laws are fitted: minimisers, priors and weights, noise and drift."""
