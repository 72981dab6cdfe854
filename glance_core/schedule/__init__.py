"""Which noise levels are sampled, and which phase answers at each of them."""
