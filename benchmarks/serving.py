"""Requests a second that `fakedet serve` answers, how long each waits, and whether its memory grows.

Run: python -m benchmarks.serving [requests] [clients] [key=value of fakedet serve ...]
"""

from __future__ import annotations

import http.client
import itertools
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress

import cv2
import numpy as np
import skimage.data

SIDE = 256  # pixels
WARM = 100  # requests that are not counted
SAMPLES = 10  # of the server's memory
CASES = {"a picture": "/v1/predict", "a picture, with its card": "/v1/predict?card=true", "no picture": "/v1/predict"}


def pictures() -> list[bytes]:
    """Cut squares out of a photograph, as multipart bodies."""
    image = cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2BGR)
    places = itertools.product(range(0, image.shape[0] - SIDE, 64), repeat=2)
    return [body(cv2.imencode(".jpg", image[y : y + SIDE, x : x + SIDE])[1].tobytes()) for y, x in places]


def body(content: bytes) -> bytes:
    part = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
    return part + content + b"\r\n--edge--\r\n"


def memory(process: int) -> float:
    """Give the megabytes that a process has in memory."""
    with open(f"/proc/{process}/status") as file:
        found = re.search(r"VmRSS:\s+(\d+) kB", file.read())
    return int(found[1]) / 1024 if found else np.nan


def load(
    port: int, path: str, bodies: list[bytes], requests: int, clients: int, process: int
) -> tuple[list[float], ...]:
    """Send requests, several at a time; return the seconds that each took and samples of the server's memory."""
    times: list[float] = []
    used = [memory(process)]
    numbers, answers = iter(range(requests)), Counter[int]()

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        headers = {"Content-Type": "multipart/form-data; boundary=edge"}
        for number in numbers:
            start = time.perf_counter()
            connection.request("POST", path, bodies[number % len(bodies)], headers)
            answer = connection.getresponse()
            answer.read()
            times.append(time.perf_counter() - start)
            answers[answer.status] += 1
            if (number + 1) % max(1, requests // SAMPLES) == 0:
                used.append(memory(process))
        connection.close()

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {200: requests}, answers
    return times, used


def main() -> None:
    """Start a server, load it, print the table."""
    settings = [word for word in sys.argv[1:] if "=" in word]
    requests, clients = [*(int(word) for word in sys.argv[1:] if "=" not in word), 1000, 4][:2]
    command = ["-m", "fakedet", "serve", "checkpoint=demo", "threads=1", "per_minute=1000000000", *settings]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            port = next(int(found[1]) for line in server.stdout if (found := re.search(r"page is at \S+:(\d+)/", line)))
            print(f"JPEG {SIDE}x{SIDE}, {clients} clients at a time, {requests} requests each row; the server's memory "
                  "at the start, the highest, at the end")  # fmt: skip
            print("\n| | requests/s | median ms | p95 ms | memory MB |\n|---|---|---|---|---|")
            for name, path in CASES.items():
                bodies = [body(b"no picture")] if name == "no picture" else pictures()
                load(port, path, bodies, WARM, clients, server.pid)
                start = time.perf_counter()
                times, used = load(port, path, bodies, requests, clients, server.pid)
                rate = requests / (time.perf_counter() - start)
                median, most = 1e3 * np.percentile(times, [50, 95])
                kept = ", ".join(f"{megabytes:.0f}" for megabytes in (used[0], max(used), used[-1]))
                print(f"| {name} | {rate:.3g} | {median:.3g} | {most:.3g} | {kept} |", flush=True)
        finally:
            with suppress(ProcessLookupError):
                server.terminate()


if __name__ == "__main__":
    main()
