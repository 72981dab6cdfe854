"""Glance in pure torch: two low-rank adapters on a frozen flow model, chosen by the noise level (arXiv 2512.02899).

Importing this package never imports ComfyUI.
"""

__version__ = "0.1.0"
