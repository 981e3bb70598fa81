"""Using a trained detector: drawing what it found."""
