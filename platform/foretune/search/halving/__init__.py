"""Strategy `halving`: many settings begun, the better ones gone on with."""
