"""Which runs next: candidates, what each would tell, and the choice."""
