"""Chromium without a window, driven through its own pipe: for the tests of pages."""

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time

import pytest

PATH = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """A tab. The protocol is Chrome's: https://chromedevtools.github.io/devtools-protocol/"""

    def __init__(self, to, back):
        self.to, self.back, self.rest, self.numbers = to, back, b"", itertools.count(1)
        self.session, self.logged = None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=900, height=900, deviceScaleFactor=1, mobile=False)

    def call(self, method, **parameters):
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == number:
                assert "error" not in found, found
                return found["result"]
            self.logged.append(found)

    def _next(self):
        while b"\0" not in self.rest:
            part = os.read(self.back, 1 << 20)
            assert part, "the browser has ended"
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def open(self, address):
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def run(self, script):
        """The value of an expression."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script, seconds=20):
        end = time.monotonic() + seconds
        while not self.run(f"!!({script})"):
            assert time.monotonic() < end, f"it doesn't become true: {script}"
            time.sleep(0.02)

    def hover(self, selector):
        place = self.run(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({selector}.getBoundingClientRect())")
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])

    def picture(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    @property
    def complaints(self):
        """What went wrong in the page: exceptions, and what the browser logs as errors."""
        kinds = ("Runtime.exceptionThrown",)
        found = [one for one in self.logged if one.get("method") in kinds]
        return found + [
            one
            for one in self.logged
            if one.get("method") == "Log.entryAdded" and one["params"]["entry"]["level"] == "error"
        ]

    @property
    def asked(self):
        """The addresses that were asked for."""
        sent = [one for one in self.logged if one.get("method") == "Network.requestWillBeSent"]
        return [one["params"]["request"]["url"] for one in sent]


@contextlib.contextmanager
def browser():
    if PATH is None:
        pytest.skip("this machine has no chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        (read, to), (back, write) = os.pipe(), os.pipe()
        options = "--headless --no-sandbox --disable-gpu --no-first-run --remote-debugging-pipe --disable-dev-shm-usage"
        line = f'exec "{PATH}" {options} --user-data-dir={profile} 3<&{read} 4>&{write}'
        process = subprocess.Popen(["bash", "-c", line], pass_fds=(read, write), stderr=subprocess.DEVNULL)
        os.close(read)
        os.close(write)
        try:
            yield Page(to, back)
        finally:
            process.kill()
            process.wait()
            os.close(to)
            os.close(back)
