"""`python -m benchmarks.NAME` prints one table.

Every ratio is measured side by side in one run; times and memory inside a real ComfyUI.
"""
