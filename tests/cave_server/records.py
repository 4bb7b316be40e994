"""The JSON records of the info, materialization and schema services."""

from __future__ import annotations

import datetime as dt
from typing import Any

from .tables import WireTable

INFO_VERSION = "4.5.0"
MATERIALIZE_VERSION = "5.13.0"  # the oldest that caveclient 8 will query
FIRST_RELEASE = dt.datetime(2021, 6, 11, 8, 10, 0, 215114)  # of version 117


def info_record(url: str, synapse_table: str) -> dict[str, Any]:
    """Return the record of a datastack; `url` is where every other service is."""
    return {
        "aligned_volume": {
            "id": 1,
            "name": "minnie65_phase3",
            "display_name": "Minnie65",
            "image_source": "precomputed://https://example.org/em",
            "description": "",
        },
        "analysis_database": None,
        "base_link": f"{url}/nglstate",
        "description": "a synthetic release",
        "local_server": url,
        "segmentation_source": f"graphene://{url}/segmentation/table/minnie3_v1",
        "soma_table": "nucleus_detection_v0",
        "synapse_table": synapse_table,
        "viewer_resolution_x": 4.0,
        "viewer_resolution_y": 4.0,
        "viewer_resolution_z": 40.0,
        "viewer_site": "https://example.org/viewer",
    }


def version_record(datastack: str, version: int, *, served: bool) -> dict[str, Any]:
    """Return the record of a version, with its timestamp."""
    made = FIRST_RELEASE + dt.timedelta(days=version - 117)
    leaves = made + dt.timedelta(days=36_500 if served else 365)
    return {
        "id": version,
        "version": version,
        "datastack": datastack,
        "valid": served,
        "status": "AVAILABLE" if served else "EXPIRED",
        "is_merged": True,
        "parent_version": None,
        "time_stamp": made.isoformat(),
        "expires_on": leaves.isoformat(),
    }


def table_record(table: WireTable) -> dict[str, Any]:
    """Return the metadata of a table."""
    x, y, z = table.resolution
    return {
        "aligned_volume": "minnie65_phase3",
        "annotation_table": table.name,
        "table_name": table.name,
        "created": FIRST_RELEASE.isoformat(),
        "last_modified": FIRST_RELEASE.isoformat(),
        "valid": True,
        "schema": table.name,
        "schema_type": table.name,
        "description": f"{table.name}, synthetic",
        "notice_text": table.notice,
        "reference_table": table.target.name if table.target else None,
        "user_id": "1",
        "write_permission": "PRIVATE",
        "read_permission": "PUBLIC",
        "voxel_resolution_x": x,
        "voxel_resolution_y": y,
        "voxel_resolution_z": z,
    }


def schema_of(table: WireTable) -> dict[str, Any]:
    """Return a table's schema as the schema service describes it."""
    kinds = {"Int32": "integer", "Int64": "integer", "Float64": "float", "boolean": "boolean"}
    properties: dict[str, Any] = {}
    for name, parts in table.columns.items():
        bound = name.removesuffix("_position")
        if len(parts) == 3:
            is_bound = f"{bound}_root_id" in table.columns
            kind = "BoundSpatialPoint" if is_bound else "SpatialPoint"
            properties[bound] = {"$ref": f"#/definitions/{kind}"}
        elif not name.endswith(("_root_id", "_supervoxel_id")) and name not in ("id", "valid"):
            properties[name] = {"type": kinds.get(str(table.frame[parts[0]].dtype), "string")}
    definitions = {table.name: {"properties": properties, "type": "object"}}
    return {"$ref": f"#/definitions/{table.name}", "definitions": definitions}
