"""Labelled sparse connectivity: kernels, building, operations."""
