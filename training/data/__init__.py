"""What stages read: text packed into shards, and image-text samples as ids and labels. Knows no optimiser."""
