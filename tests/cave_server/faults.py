"""Faults on demand: what goes wrong, on which path, how many times."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

HTML = b"<!doctype html><html><head><title>Sign in</title></head><body>Sign in</body></html>"

# Each kind with the parameters it takes and their defaults.
KINDS: dict[str, dict[str, Any]] = {
    # An error status; body: bytes, text or a JSON document; retry_after: seconds, as a header.
    "status": {"status": 500, "retry_after": None, "body": None},
    # Answers after some seconds.
    "delay": {"seconds": 0.1},
    # Closes the connection without an answer; reset: by RST instead of FIN.
    "drop": {"reset": False},
    # Closes it after the headers.
    "drop_body": {"reset": False},
    # Sends only a part of what Content-Length promises; stall: seconds to wait before closing.
    "half_body": {"fraction": 0.5, "stall": 0.0, "reset": False},
    # Sends a part with the Content-Length of the part.
    "truncated": {"fraction": 0.5},
    # An Arrow stream that ends after its schema.
    "schema_only": {},
    # All rows, in another order.
    "shuffle": {},
    # A share of the rows is missing, and nothing says so.
    "lose_rows": {"fraction": 0.5},
    # A page of HTML with status 200.
    "html": {"body": HTML},
    # Status 200 and no body.
    "empty": {},
}
QUERY_KINDS = ("schema_only", "shuffle", "lose_rows")


@dataclass
class Fault:
    """One fault that waits for requests to its path."""

    kind: str  # one of `KINDS`
    match: str  # regular expression, searched for in the path (without the query string)
    times: int = 1  # how many requests it still hits
    after: int = 0  # how many matching requests it lets pass first
    params: dict[str, Any] = field(default_factory=dict)  # what its kind takes

    def __getitem__(self, name: str) -> Any:
        return self.params[name]


class FaultQueue:
    """The faults of a server; the oldest that matches a request hits it, one fault a request."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Fault] = []
        self.fired: list[tuple[str, str]] = []

    def add(
        self, kind: str, match: str = r"/query$", times: int = 1, after: int = 0, **params: Any
    ) -> Fault:
        """Let the next `times` requests whose path matches fail, after `after` that do not."""
        if kind not in KINDS:
            raise ValueError(f"fault {kind!r} is not one of {sorted(KINDS)}")
        unknown = set(params) - set(KINDS[kind])
        if unknown:
            raise ValueError(f"fault {kind!r} takes {sorted(KINDS[kind])}, not {sorted(unknown)}")
        re.compile(match)
        fault = Fault(kind, match, times, after, {**KINDS[kind], **params})
        with self._lock:
            self._waiting.append(fault)
        return fault

    def take(self, path: str) -> Fault | None:
        """Return the fault that hits a request to `path`, and count it."""
        with self._lock:
            for fault in self._waiting:
                if fault.times <= 0 or not re.search(fault.match, path):
                    continue
                if fault.after > 0:
                    fault.after -= 1
                    continue
                fault.times -= 1
                self.fired.append((fault.kind, path))
                return fault
        return None

    @property
    def pending(self) -> int:
        """How many requests are still to be hit."""
        with self._lock:
            return sum(f.times for f in self._waiting)

    def clear(self) -> None:
        """Forget the faults that wait, and which fired."""
        with self._lock:
            self._waiting.clear()
            self.fired.clear()


def instead_of_answer(fault: Fault) -> tuple[int, dict[str, str], bytes] | None:
    """Return status, headers and body of the faults that need no answer of the server's own."""
    if fault.kind == "status":
        body = fault["body"]
        kind = "text/html"
        if body is None or isinstance(body, Mapping):
            body = json.dumps(body or {"message": f"fault {fault['status']}"})
            kind = "application/json"
        headers = {"Content-Type": kind}
        if fault["retry_after"] is not None:
            headers["Retry-After"] = str(fault["retry_after"])
        return fault["status"], headers, body if isinstance(body, bytes) else body.encode()
    if fault.kind == "html":
        return 200, {"Content-Type": "text/html; charset=utf-8"}, fault["body"]
    if fault.kind == "empty":
        return 200, {"Content-Type": "data.arrow"}, b""
    return None


def change_rows(fault: Fault, frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Return the rows of an answer as `fault` leaves them."""
    order = rng.permutation(len(frame))
    if fault.kind == "lose_rows":
        order = np.sort(order[: int(len(frame) * (1 - fault["fraction"]))])
    elif fault.kind != "shuffle":
        return frame
    return frame.take(order).reset_index(drop=True)


def sent_part(fault: Fault | None, body: bytes) -> tuple[bytes, int, bool]:
    """Return what is sent of a body, the length that is announced, and whether it breaks off."""
    if fault is None:
        return body, len(body), False
    part = body[: int(len(body) * fault.params.get("fraction", 0))]
    if fault.kind == "truncated":
        return part, len(part), False
    if fault.kind == "half_body":
        return part, len(body), True
    if fault.kind == "drop_body":
        return b"", max(len(body), 1), True
    return body, len(body), False
