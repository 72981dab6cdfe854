"""The command line: python -m glance_core."""
