"""Autograd through a frozen model: LoRA layers, checkpointing, writes in place."""
