"""python -m benchmarks.NAME prints one table; every ratio is measured side by side in one run, inside a real ComfyUI."""
