"""V-NIAH: one image hidden among the frames of a film (paper section 4)."""
