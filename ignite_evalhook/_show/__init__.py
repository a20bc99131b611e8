"""Show people what evaluations said."""
