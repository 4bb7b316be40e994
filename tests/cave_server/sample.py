"""A few rows with what makes the real tables hard: large ids, gaps, references, other types."""

from __future__ import annotations

import numpy as np
import pandas as pd

NUCLEI = "nucleus_detection_v0"
TYPES = "aibs_metamodel_celltypes_v661"
STATUS = "proofreading_status_and_strategy"
SYNAPSES = "synapses_pni_2"
ROOT = 864_691_135_000_000_001  # float64 holds only every 128th id of this size
N_SYNAPSES = 300


def make_tables() -> dict[str, pd.DataFrame]:
    """Return nuclei, their types, proofreading states and 300 synapses."""
    rng = np.random.default_rng(5)
    nuclei = pd.DataFrame(
        {
            "id": np.array([100, 101, 102, 103]),
            "pt_root_id": np.array([ROOT, ROOT + 1, ROOT + 2, 0]),
            "volume": [1.1, 2.2, np.nan, 4.4],
            "pt_position_x": [10, 20, 30, 40],
            "pt_position_y": [11, 21, 31, 41],
            "pt_position_z": [12, 22, 32, 42],
        }
    )
    types = pd.DataFrame(
        {
            "id": np.array([7, 8, 9]),
            "target_id": np.array([102, 100, 999]),  # 999 is no nucleus
            "classification_system": ["excitatory_neuron", "inhibitory_neuron", "nonneuron"],
            "cell_type": ["23P", None, "oligo"],
            "pt_root_id": np.array([5, 5, 5]),  # the target's, not this
        }
    )
    status = pd.DataFrame(
        {
            "pt_root_id": np.array([ROOT, ROOT + 1]),
            "valid_id": pd.array([ROOT, None], dtype="Int64"),
            "status_axon": [True, False],
            "created": pd.to_datetime(["2024-01-02 03:04:05.678", "2024-02-03"], format="ISO8601"),
        }
    )
    synapses = pd.DataFrame(
        {
            "id": np.arange(N_SYNAPSES) + 2**53 + 1,
            "pre_pt_root_id": ROOT + rng.integers(0, 5, N_SYNAPSES),
            "post_pt_root_id": ROOT + rng.integers(0, 5, N_SYNAPSES),
            "size": rng.integers(1, 10_000, N_SYNAPSES),
            "ctr_pt_position": list(rng.integers(0, 1000, (N_SYNAPSES, 3))),
        }
    )
    return {NUCLEI: nuclei, TYPES: types, STATUS: status, SYNAPSES: synapses}
