"""From files to the batches that cross into training."""
