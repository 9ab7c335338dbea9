"""Strategy `pbt`: a population whose members copy better ones, its lineage, and the schedule that it found."""
