"""Keep predictions, one item per sample, in the order of the dataset."""
