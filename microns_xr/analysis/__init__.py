"""Questions about populations: probabilities, likeness, null models, releases side by side."""
