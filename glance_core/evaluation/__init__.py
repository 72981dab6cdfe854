"""How near a result comes to the teacher, and whether a difference is clear."""
