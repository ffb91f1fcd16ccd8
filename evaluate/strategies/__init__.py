"""Inference-time strategies, one file each, named like the function in it."""
