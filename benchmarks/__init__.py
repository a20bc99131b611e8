"""Speed, measured beside the peers: ``python -m benchmarks``; see README.md here."""
