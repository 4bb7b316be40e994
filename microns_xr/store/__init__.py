"""Format 1 of the zarr store: rules, writer, reader, xarray engine."""
