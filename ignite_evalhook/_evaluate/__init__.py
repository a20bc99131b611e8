"""Evaluate once: from a model and its data to plain metrics."""
