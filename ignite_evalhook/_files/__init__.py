"""Write and read what is on disk, and never lose a best."""
