"""Strategy `autolrs`: a learning rate that is searched while the model trains."""
