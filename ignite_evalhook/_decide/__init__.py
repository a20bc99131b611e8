"""Decide with plain values: when an evaluation is due, what is better, what is the best.

Neither torch nor Ignite is known here.
"""
