"""Train a Slow and a Fast LoRA on a frozen model."""
