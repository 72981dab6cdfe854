"""Samplers, learned multistep solvers, and runs of the teacher."""
