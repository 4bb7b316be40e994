"""Root ids of three neurons."""

# 18-digit ids that a float64 cannot tell apart: neighbours of 8.6e17 are 128 apart.
ROOTS = {11: 864691135639235593, 12: 864691135639235594, 13: 864691135639235595}
