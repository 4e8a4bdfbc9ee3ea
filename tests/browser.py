"""Headless Chromium by its DevTools protocol, through pipes: what a page does in a browser."""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from contextlib import suppress

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--remote-debugging-pipe",
)  # fmt: skip
ANSWER = 60  # seconds


class Browser:
    """A browser with one page; what it reports is kept in `events`, as (method, parameters)."""

    def __init__(self, folder):
        reads, self._write = os.pipe()
        self._read, writes = os.pipe()
        # Above 4 first, so that neither is overwritten on the way to where Chromium expects them.
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (reads, writes)]
        actions = [
            (os.POSIX_SPAWN_DUP2, end, place) for end, place in zip(theirs, (3, 4), strict=True)
        ]
        actions += [(os.POSIX_SPAWN_OPEN, out, os.devnull, os.O_WRONLY, 0) for out in (1, 2)]
        words = [PROGRAM, *OPTIONS, f"--user-data-dir={folder}"]
        self._process = os.posix_spawn(
            PROGRAM, words, os.environ, file_actions=actions, setpgroup=0
        )
        for end in (reads, writes, *theirs):
            os.close(end)
        self._buffer, self._count, self._session, self.events = b"", 0, None, []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        attached = self("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method, **parameters):
        """Send a command of the protocol; its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._count:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _next(self):
        """The next message, and into `events` if it is one."""
        end = time.monotonic() + ANSWER
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            if not (data := os.read(self._read, 1 << 20)):
                raise RuntimeError("the browser has ended")
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        if "method" in message:
            self.events.append((message["method"], message["params"]))
        return message

    def open(self, url):
        """Load a page, to its `load` event."""
        self("Page.navigate", url=url)
        while not self.of("Page.loadEventFired"):
            self._next()

    def of(self, method):
        """The parameters of all events of this kind."""
        return [parameters for name, parameters in self.events if name == method]

    def value(self, expression):
        """What a JavaScript expression gives, awaited."""
        answer = self("Runtime.evaluate", expression=expression, returnByValue=True,
                      awaitPromise=True)  # fmt: skip
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, **clip):
        """A PNG of the page, or of a rectangle x, y, width, height of it."""
        options = {"clip": {**clip, "scale": 1}} if clip else {}
        return base64.b64decode(self("Page.captureScreenshot", **options)["data"])

    def media(self, media="", scheme="light"):
        """Emulate a medium, such as print, and the reader's colours."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self("Emulation.setEmulatedMedia", media=media, features=features)

    def close(self):
        """End the browser and all its processes."""
        with suppress(OSError):
            os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._read)
        os.close(self._write)
