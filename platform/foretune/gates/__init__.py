"""The two gates before runs of different sizes count as transferable: coordinates, and the optimum itself."""
