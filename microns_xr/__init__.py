"""MICrONS as labelled arrays: units, sparse connectivity, input currents.

>>> import microns_xr as mx
>>> release = mx.Release(1718, source="demo")
>>> units = release.units(functional="match", rates=True)
>>> currents = mx.input_currents(release.connectivity(), units.rate_ori)
>>> currents.dims
('post_nucleus_id', 'orientation')
"""

import lazy_loader

# The names are declared once, in __init__.pyi, which editors and type checkers read as well.
# Importing the package imports none of their modules and reads no other file.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
