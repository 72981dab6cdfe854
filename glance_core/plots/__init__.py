"""Plots and picture grids, drawn with Pillow."""
