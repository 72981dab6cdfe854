"""The nodes: one file per family. Everything that touches the inside of ComfyUI is in host/."""
