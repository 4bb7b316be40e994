"""``python -m microns_xr`` is the command ``microns-xr``."""

from microns_xr.cli import main

main()
