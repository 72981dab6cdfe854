"""The host glue: V3 nodes over glance_core. What reaches inside comfy is in host.py and pair.py, and one sampler in samplers.py."""
