"""A bank of varied prompts."""
