"""LoRA files: names, scales, metadata, reading, writing. FORMAT.md describes the file format."""
