"""Null models: what else could have made a result, and what a result is compared with.

Each null keeps some of what was observed (``attrs["keeps"]``) and draws the rest anew, so a
difference from it says that the result is not explained by what is kept:

============================  ===================================================================
`permute_angles`              Keeps every connection, and the angles there are. A difference says
                              that connections and angles are related, for whatever reason: with
                              ``within=`` not because groups differ in both. Alike neurons that lie
                              close together make a difference too, since permuted angles no longer
                              cluster.
`rewire`                      Keeps the angles where they are, and how many partners every neuron
                              has. A difference is not due to tuned neurons being connected more,
                              or to unequal degrees; it may be due to where neurons lie.
`rewire_by_distance`          Keeps the angles where they are, and how many partners every
                              presynaptic neuron has at each distance. A difference is due neither
                              to degrees (in-degrees on request) nor to alike neurons being
                              neighbours, as far as the bins of distance are fine enough.
`permute_weights`             Keeps who is connected with whom. A difference says that sizes are
                              related to the angles, whatever connections are.
============================  ===================================================================

None of them moves a connection out of the axes of the connectivity, which are the pairs that were
asked for. Make them of the connections that are looked at (`mx.tuned_connections`): a null of more
exchanges partners with neurons that are never looked at.
"""

from __future__ import annotations

from microns_xr.analysis.compare import compare, compare_values, null_values
from microns_xr.analysis.permute import permute_angles, permute_weights
from microns_xr.analysis.replicates import Replicates
from microns_xr.analysis.rewire import rewire, rewire_by_distance

__all__ = [
    "Replicates",
    "compare",
    "compare_values",
    "null_values",
    "permute_angles",
    "permute_weights",
    "rewire",
    "rewire_by_distance",
]
