"""A headless Chromium for tests of pages, told what to do through a pipe (Chrome DevTools Protocol): no driver needed."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-dev-shm-usage", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--no-first-run", "--disable-extensions", "--disable-background-networking", "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE = 60  # seconds


def find_chromium() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page at a time; `close` ends it. `problems` are the errors on the console, and what scripts did not catch."""

    def __init__(self, program: str, profile: Path, size: tuple[int, int] = (1000, 600)):
        (commands, self._send), (self._receive, answers) = os.pipe(), os.pipe()
        flags = [*FLAGS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"]
        joined = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'  # Chromium reads 3 and writes 4
        self._process = subprocess.Popen(
            ["bash", "-c", joined, program, *flags, "about:blank"],
            pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(commands)
        os.close(answers)
        self._waiting, self._number, self._session = b"", 0, None
        self.problems: list[str] = []
        targets = self.ask("Target.getTargets")["targetInfos"]
        target = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        self._number += 1
        session = {} if self._session is None else {"sessionId": self._session}
        message = {"id": self._number, "method": method, "params": parameters, **session}
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def open(self, page: Path) -> None:
        address = page.resolve().as_uri()
        self.ask("Page.navigate", url="about:blank")  # the same page anew, too
        self.wait_for("location.href === 'about:blank'")
        self.problems.clear()
        self.ask("Page.navigate", url=address)
        self.wait_for(f"location.href === {json.dumps(address)} && document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression, or of what it promises."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, f"{script}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait_for(self, condition: str) -> None:
        end = time.monotonic() + PATIENCE
        while not self.run(condition):
            assert time.monotonic() < end, f"still not so: {condition}; problems: {self.problems}"
            time.sleep(0.1)

    def screenshot(self) -> bytes:
        """PNG of what the window shows."""
        return base64.b64decode(self.ask("Page.captureScreenshot")["data"])

    def close(self) -> None:
        self._session = None
        self.ask("Browser.close")
        self._process.wait(PATIENCE)
        os.close(self._send)
        os.close(self._receive)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._waiting:
            part = os.read(self._receive, 1 << 16)
            assert part, "Chromium ended"
            self._waiting += part
        message, _, self._waiting = self._waiting.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        found: dict[str, Callable[[dict], str | None]] = {
            "Runtime.exceptionThrown": lambda p: json.dumps(p["exceptionDetails"]),
            "Runtime.consoleAPICalled": lambda p: json.dumps(p["args"]) if p["type"] == "error" else None,
            "Log.entryAdded": lambda p: p["entry"]["text"] if p["entry"]["level"] == "error" else None,
        }
        problem = found.get(event.get("method", ""), lambda _: None)(event.get("params", {}))
        if problem is not None:
            self.problems.append(problem)
