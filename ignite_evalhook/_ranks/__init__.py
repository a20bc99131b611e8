"""Let several processes agree, share the batches, and compute metrics together."""
