"""The best few steps of a model, found without training."""
