"""From images and frames to pixel values and their place among visual tokens. Knows nothing of text."""
