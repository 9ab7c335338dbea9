"""From losses to scores of tasks."""
