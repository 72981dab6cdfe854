"""The host glue: V3 nodes over glance_core. host.py and pair.py are the only files that know comfy's inside."""
