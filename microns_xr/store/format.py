"""Format 1 of the store: its rules, constants, and the checks shared by reading and writing.

A store is one zarr v3 hierarchy. MUST and MAY are meant as in RFC 2119.

Root
    1. The root attributes MUST hold ``microns_xr_format`` (the integer 1), ``datastack`` and
       ``materialization_version`` (unless the data state no release), ``timestamp`` (ISO
       8601 or null), ``created_by`` (``"microns_xr <version>"``), ``source_tables`` (list
       of strings: the name and, where known, a colon, the number of rows and the sha256 of the
       parquet file, as in ``"nucleus_detection_v0: 144120 rows, sha256 ab12"``; older stores have
       objects with ``name``, ``rows`` and ``sha256``) and ``references`` (list of strings).
       They MAY hold ``how_to_open``, calls for a reader that sees only the root.
    2. They MUST be written last: a root without ``microns_xr_format`` is an unfinished store.
    3. The groups are ``units``, which MUST be present, and ``layers``, ``functional``,
       ``connectivity/by_post``, ``connectivity/by_pre`` and ``synapses``, each of which MUST be
       absent if the store has no such data. Metadata MAY be consolidated.

Every group of data (``units``, ``connectivity/by_post``, ...)
    4. MUST repeat ``datastack`` and ``materialization_version`` as attributes if the root has
       them, and MUST list its variables, in order, in the attribute ``microns_xr_variables``.
       The attribute ``coordinates`` MUST name those that are coordinates, separated by spaces. The
       ids and labels of the rows are among them; early stores hold these as variables, which
       readers turn into coordinates.
       All other attributes belong to the data, as do all attributes of the arrays.
    5. Every array MUST have ``dimension_names`` (except scalars). A name MUST NOT contain
       whitespace or slashes. An array named like its only dimension is the index of that dimension.
    6. Text MUST be of the zarr data type ``string``. Numbers and booleans keep their width. An
       array MUST NOT need pickle, or a codec outside the core list in ``CODECS``.
    7. Chunks MUST hold at most 2^20 positions along the first dimension and all of the others.
       Codecs are ``bytes`` (``vlen-utf8`` for text), blosc (zstd level 1, byte shuffle) and
       ``crc32c``, which early stores lack. Every chunk MUST be stored, even if all zeros, so that
       a lost chunk is noticed. On request, arrays over ``connection`` or ``synapse`` that are
       longer than 2^16 MAY instead be sharded: codec ``sharding_indexed``, chunks of 2^16
       positions coded as above, any number of them per shard, and the index, coded by ``bytes``
       and ``crc32c``, at the end of the shard.

``connectivity/by_post`` and ``connectivity/by_pre``
    8. MUST hold the same pairs, compressed over the axis that names the group:

       =================== =================== ============== ==================================
       array               dimension           type           content
       =================== =================== ============== ==================================
       ``data``            ``connection``      see below      ``synapse_size``, summed
       ``indices``         ``connection``      int32          position on the other axis
       ``indptr``          ``post_pointer`` /  int64          spans of the compressed axis
                           ``pre_pointer``
       ``synapse_count``   ``connection``      see below      number of synapses
       ``post_index`` /    ``connection``      int32          position on the compressed axis
       ``pre_index``
       ``pre_nucleus_id``  the same            int64          labels, ascending and unique
       ``post_nucleus_id`` the same            int64          labels, ascending and unique
       =================== =================== ============== ==================================

       ``synapse_count`` MUST be absent if synapses were not counted; a reader MUST ignore it if
       its attribute ``counts`` is "rows of a table with one row per pair". Connectivity without
       ``synapse_size`` MUST hold another weight in ``data`` and its name in the attribute
       ``data_variable`` of the group. Further weights MAY follow as arrays over ``connection``.
       Weights are int32, float64, or int64, the last only if a value does not fit int32.
    9. ``indptr`` MUST start at 0, never descend and end at the number of connections; ``indices``
       MUST be strictly ascending within a span.
    10. The attributes ``encoding-type`` (``csc_matrix`` for ``by_post``, ``csr_matrix`` for
        ``by_pre``), ``encoding-version`` (``0.1.0``) and ``shape`` (number of pre, of post) MUST
        be those of anndata's sparse matrices, so that anndata can read either group.
    11. Further variables over one of the axes, and scalars such as ``scope``, are stored in both
        groups. One of the groups MAY be absent; the other MUST then be complete.

``synapses``
    12. Single synapses over the dimension ``synapse``; ``pre_index`` and ``post_index`` count along
        the axes of ``connectivity``, and rows MUST ascend by post, then by pre, and SHOULD then
        ascend by ``synapse_id``. The variables over ``synapse`` are

        =================== ===================== ============== ===============================
        array               dimensions            type           content
        =================== ===================== ============== ===============================
        ``synapse_id``      ``synapse``           int64          id in the synapse table
        ``pre_index``       ``synapse``           int32          position in ``pre_nucleus_id``
        ``post_index``      ``synapse``           int32          position in ``post_nucleus_id``
        ``size``            ``synapse``           int32 or int64 voxels
        ``position``        ``synapse``, ``axis`` float32 or 64  centre in µm, y from the pia
        ``axis``            ``axis``              string         x, y, z
        ``pre_nucleus_id``  the same              int64          the axis of ``connectivity``
        ``post_nucleus_id`` the same              int64          the axis of ``connectivity``
        =================== ===================== ============== ===============================

        Each of them MAY be absent, and further variables MAY be present. Readers give each synapse
        the ids of its neurons in place of positions: Datasets may be sorted, selected and joined.
    13. The group MAY hold ``post_indptr`` (``post_pointer``, int64), the spans of the rows of each
        postsynaptic neuron, as ``indptr`` of rule 9; and the group ``synapses/by_pre``, which MUST
        hold the same rows and variables in ascending order of pre, then of post (and SHOULD then
        ascend by ``synapse_id``), with ``pre_indptr`` (``pre_pointer``) in place of
        ``post_indptr``. Readers MUST NOT require either, and a Dataset of synapses has neither.
    14. Arrays over ``synapse`` SHOULD have chunks of 2^17 rows: a neuron has a few thousand.

Checksums of the metadata
    15. The root attribute ``microns_xr_checksums``, which early stores lack, MUST list the
        ``zarr.json`` of every group and array, one line of text each: the CRC-32 in eight
        hexadecimal digits, a space, and the path. It is computed over the JSON with sorted keys,
        no spaces, only ASCII characters and without ``consolidated_metadata``; that of the root,
        path ``/``, over its attributes without this one. ``microns_xr_id`` MUST be a text that no
        other store has. So nothing in a store may be changed once it is finished.

A local store is replaced by renaming (see `microns_xr.store.swap`); an object store is written to
a new prefix. Readers MUST refuse a store of a newer format, and keep reading older ones.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from microns_xr.errors import SchemaError

if TYPE_CHECKING:
    from zarr.codecs import BloscCodec, Crc32cCodec

    from microns_xr.connectivity.arrays import Compressed

FORMAT = 1
FORMAT_ATTR = "microns_xr_format"
CHECKSUMS_ATTR = "microns_xr_checksums"
ID_ATTR = "microns_xr_id"
VARIABLES_ATTR = "microns_xr_variables"
COORDS_ATTR = "coordinates"
DATA_ATTR = "data_variable"
WEIGHT_DTYPES = "int32 int64 float64"
CHUNK = 2**20
# Reading 3,500 synapses of one neuron, out of 3 million, takes 6 ms with chunks of 2^17 and 24 ms
# with chunks of 2^20; smaller chunks are not faster.
SYNAPSE_CHUNK = 2**17
# By default blosc uses blocks of 32 KiB at this level; blocks of 512 KiB are written and read in
# half the time and take 10 % less space (30 million connections).
BLOCKSIZE = 2**19
# Small chunks in large shards: one neuron needs few bytes, and many neurons need few requests.
INNER_CHUNK = 2**16
SHARD = 2**22
CODECS = ("bytes", "vlen-utf8", "blosc", "sharding_indexed", "crc32c")
DATA_GROUPS = ("units", "layers", "functional", "connectivity", "synapses")
MATRIX_GROUP: dict[Compressed, str] = {"post": "connectivity/by_post", "pre": "connectivity/by_pre"}
OTHER: dict[Compressed, Compressed] = {"post": "pre", "pre": "post"}
SYNAPSE_GROUP: dict[Compressed, str] = {"post": "synapses", "pre": "synapses/by_pre"}
SYNAPSE_POINTER: dict[Compressed, str] = {"post": "post_indptr", "pre": "pre_indptr"}
INDEX_NAMES: dict[Compressed, str] = {"post": "post_index", "pre": "pre_index"}


def compressors(itemsize: int) -> tuple[BloscCodec, Crc32cCodec]:
    """Return the compressor and the checksum of format 1 for elements of `itemsize` bytes."""
    from zarr.codecs import BloscCodec, Crc32cCodec  # only writing needs zarr here

    # The checksum comes last, so that blosc never sees a damaged chunk: it reads beyond its end.
    return (
        BloscCodec(
            typesize=itemsize, cname="zstd", clevel=1, shuffle="shuffle", blocksize=BLOCKSIZE
        ),
        Crc32cCodec(),
    )


def metadata_checksum(metadata: Mapping[str, Any]) -> str:
    """Return the checksum of the content of one ``zarr.json`` (rule 15)."""
    plain = {key: value for key, value in metadata.items() if key != "consolidated_metadata"}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return f"{zlib.crc32(text.encode()):08x}"


def root_checksum(attributes: Mapping[str, Any]) -> str:
    """Return the checksum of the attributes of the root (rule 15)."""
    plain = {key: value for key, value in attributes.items() if key != CHECKSUMS_ATTR}
    return metadata_checksum({"attributes": plain})


def chunk_of(dims: tuple[str, ...]) -> int:
    """Return the chunk length along the first dimension of a long array."""
    return SYNAPSE_CHUNK if dims[0] == "synapse" else CHUNK


def grid_of(
    shape: tuple[int, ...], dims: tuple[str, ...], shards: bool = False
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Return the chunk shape of an array, and its shard shape or None (rules 7 and 14)."""
    if not shape:
        return (), None
    rest = tuple(max(1, n) for n in shape[1:])
    if not shards or dims[0] not in ("connection", "synapse") or shape[0] <= INNER_CHUNK:
        return (max(1, min(chunk_of(dims), shape[0])), *rest), None
    whole = math.ceil(shape[0] / INNER_CHUNK) * INNER_CHUNK
    return (INNER_CHUNK, *rest), (min(SHARD, whole), *rest)


def matrix_arrays(compressed: Compressed) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return allowed dtypes (separated by spaces) and dimensions of the arrays of every copy."""
    return {
        "data": (WEIGHT_DTYPES, ("connection",)),
        "indices": ("int32", ("connection",)),
        "indptr": ("int64", (f"{compressed}_pointer",)),
        INDEX_NAMES[compressed]: ("int32", ("connection",)),
        "pre_nucleus_id": ("int64", ("pre_nucleus_id",)),
        "post_nucleus_id": ("int64", ("post_nucleus_id",)),
    }


def matrix_attrs(compressed: Compressed, shape: tuple[int, int]) -> dict[str, Any]:
    """Return the attributes by which anndata recognizes a sparse matrix (rule 10)."""
    return {
        "encoding-type": {"post": "csc_matrix", "pre": "csr_matrix"}[compressed],
        "encoding-version": "0.1.0",
        "shape": list(shape),
    }


def reserved_attrs(group: str) -> tuple[str, ...]:
    """Return the attributes of a group that belong to the format, not to the data."""
    always = ("datastack", "materialization_version", VARIABLES_ATTR, COORDS_ATTR)
    matrix = (*matrix_attrs("post", (0, 0)), DATA_ATTR)
    return (*always, *matrix) if "connectivity" in group else always


def check_name(name: object, where: str) -> str:
    """Return a variable or dimension name, or raise if a store cannot hold it."""
    if isinstance(name, str) and re.fullmatch(r"(?!__|\.+$|zarr\.json$)[^\s/]+", name):
        return name
    raise SchemaError(
        f"{where} has the name {name!r}, expected text without whitespace or slashes that is not "
        "'zarr.json' and does not start with '__': rename it with .rename before writing"
    )


def json_attrs(attrs: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Return attributes as plain JSON values."""
    plain = {}
    for key, value in attrs.items():
        if not isinstance(key, str):
            raise SchemaError(
                f"attributes of {where} have the key {key!r}, expected text: rename it before "
                "writing"
            )
        plain[key] = _json_value(value, f"{key!r} of {where}")
    return plain


def _json_value(value: Any, where: str) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        raise SchemaError(
            f"attribute {where} holds {value}, which JSON does not support: use None or remove it"
        )
    if isinstance(value, list | tuple):
        return [_json_value(item, where) for item in value]
    if isinstance(value, Mapping):
        return json_attrs(value, where)
    raise SchemaError(
        f"attribute {where} holds a {type(value).__name__}, expected text, numbers, booleans, "
        "None, or lists and mappings of them: convert or remove it before writing"
    )


def pointer_problem(indptr: np.ndarray, n_major: int, n: int) -> str | None:
    """Return a message if `indptr` does not cut `n` rows into `n_major` spans, else None."""
    if indptr.shape != (n_major + 1,):
        return f"has shape {indptr.shape}, expected {(n_major + 1,)}"
    if indptr[0] != 0 or (indptr[1:] < indptr[:-1]).any():
        return "does not ascend from 0, expected the start of each neuron's span"
    if indptr[-1] != n:
        return f"ends at {indptr[-1]}, expected the {n} rows it points into"
    return None


def index_problem(positions: np.ndarray, n: int) -> str | None:
    """Return a message unless all are positions on an axis of `n` neurons, else None."""
    if not positions.size or 0 <= positions.min() <= positions.max() < n:
        return None
    return f"runs from {positions.min()} to {positions.max()}, expected 0 to {n - 1} ({n} neurons)"


def pattern_problem(
    indices: np.ndarray, indptr: np.ndarray, shape: tuple[int, int], compressed: Compressed
) -> str | None:
    """Return a message if the buffers of a compressed matrix break rules 8 and 9, else None."""
    n_pre, n_post = shape
    n_major, n_minor = (n_post, n_pre) if compressed == "post" else (n_pre, n_post)
    if problem := pointer_problem(indptr, n_major, indices.size):
        return f"indptr {problem}"
    if not indices.size:
        return None
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= n_minor:
        return (
            f"indices runs from {low} to {high}, expected 0 to {n_minor - 1} "
            f"({n_minor} {OTHER[compressed]}synaptic neurons)"
        )
    # In blocks that overlap by one connection, so that the comparison takes little memory.
    for start in range(0, indices.size, CHUNK):
        block = indices[start : start + CHUNK + 1]
        falls = start + 1 + np.flatnonzero(block[1:] <= block[:-1])
        starts_span = indptr[np.searchsorted(indptr, falls)] == falls
        if not starts_span.all():
            at = int(falls[~starts_span][0])
            return (
                f"indices does not ascend at connection {at} ({indices[at - 1]}, {indices[at]}), "
                "expected sorted and unique partners of each neuron"
            )
    return None
