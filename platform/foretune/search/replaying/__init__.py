"""Schedules that a search has found: written to a file, read from one, and trained from scratch at any rung."""
