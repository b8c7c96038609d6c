"""What Video-MME and MLVU share: where annotations and videos come from. Knows neither benchmark's questions."""
