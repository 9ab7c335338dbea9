"""Mixtures of domains: fits of every domain's loss, and the best mixture."""
