"""Drive a headless chromium through the pipe of its DevTools protocol."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

EXECUTABLE = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


class Chromium:
    """One browser with one page; `messages` are errors and warnings of its console."""

    def __init__(self, width: int = 1280, height: int = 900, timeout: float = 20) -> None:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (read, self._out), (self._in, write) = os.pipe(), os.pipe()
        # Not 3 or 4, which the browser reads from and writes to.
        high = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read, write)]
        options = [
            "--headless", "--no-sandbox", "--disable-gpu-sandbox", "--remote-debugging-pipe", "--hide-scrollbars",
            "--disable-dev-shm-usage", "--no-first-run", "--enable-unsafe-swiftshader",
            f"--user-data-dir={self._profile.name}", f"--window-size={width},{height}",
        ]  # fmt: skip

        # A shell (of descriptors above 9) moves the pipes to 3 and 4: code between fork and exec is unsafe beside threads.
        move = f'exec "$@" 3<&{high[0]} 4>&{high[1]}'
        self._process = subprocess.Popen(
            ["bash", "-c", move, "bash", str(EXECUTABLE), *options, "about:blank"],
            pass_fds=high, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in (read, write, *high):
            os.close(end)
        self._timeout, self._id, self._buffer, self._session = timeout, 0, b"", None
        self.messages: list[str] = []
        self.requests: list[str] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)
        os.close(self._in)
        os.close(self._out)
        self._profile.cleanup()

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"chromium does not answer; {self.messages}")
            if not (more := os.read(self._in, 1 << 20)):
                raise EOFError("chromium has ended")
            self._buffer += more
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, **params: Any) -> Any:
        self._id += 1
        request = {"id": self._id, "method": method, "params": params}
        if self._session:
            request["sessionId"] = self._session
        os.write(self._out, json.dumps(request).encode() + b"\0")
        deadline = time.monotonic() + self._timeout
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self._id:
                if "error" in answer:
                    raise RuntimeError(answer["error"])
                return answer["result"]
            event = answer.get("params", {})
            match answer.get("method"):
                case "Runtime.exceptionThrown":
                    details = event["exceptionDetails"]
                    self.messages.append(
                        str(details.get("exception", {}).get("description", details["text"]))
                    )
                case "Runtime.consoleAPICalled" if event["type"] in ("error", "warning"):
                    self.messages.append(
                        " ".join(str(a.get("value", a.get("description"))) for a in event["args"])
                    )
                case "Log.entryAdded" if event["entry"]["level"] == "error":
                    self.messages.append(event["entry"]["text"])
                case "Network.requestWillBeSent":
                    self.requests.append(event["request"]["url"])

    def run(self, expression: str) -> Any:
        """Evaluate JavaScript, awaiting a promise, and return its value."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description"))
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        deadline = time.monotonic() + self._timeout
        while not self.run(condition):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{condition} stays false; {self.messages}")
            time.sleep(0.05)

    def open(self, path: Path, ready: str = "true") -> None:
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait(f"document.readyState === 'complete' && ({ready})")

    def resize(self, width: int, height: int, mobile: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=mobile,
        )  # fmt: skip

    def click(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))
