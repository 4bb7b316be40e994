"""The visual side: coregistration, tuning curves, recordings."""
