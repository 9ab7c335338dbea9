"""How the fitting package does on published runs, beside the published or usual procedure."""
