"""Leave training bit for bit as it stood."""
