"""A release as one page for a browser."""
