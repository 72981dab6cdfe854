"""Everything that touches the inside of ComfyUI."""
