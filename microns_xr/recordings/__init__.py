"""Recordings: responses, behaviour and stimuli of every scan, read lazily from one HDF5 file."""
