#!/usr/bin/env python3
"""The playground under load: many readers at once over loopback, memory while they read, and requests that mean no good.

Starts `charrnn serve` with a model of random weights (or --model), and reads from it as a browser does, each reader one text after
another, all at once. Tells the characters a second of the slowest and of the median reader, the seconds to the first character, the
server's memory at the beginning and at the end, and what became of malformed and oversized requests: each has to be answered with a 4xx and
one line, and nothing may be said on standard error. Exits with 1 where something of this does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import bench_sampling

SLOWEST = 50.0  # characters a second that each reader has to get
GROWTH = 1.05  # of memory, between the first third and the end
TEXT = 5000  # characters of a text
JSON = {"Content-Type": "application/json"}


@dataclass
class Reader:
    """What one has read."""

    chars: int = 0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)  # seconds to the first character of each text
    refused: int = 0


def read(port: int, until: float, reader: Reader) -> None:
    while time.monotonic() < until:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        began = time.monotonic()
        connection.request("POST", "/v1/sample", json.dumps({"length": TEXT, "stream": True, "temperature": 1.0}), JSON)
        answer = connection.getresponse()
        if answer.status != 200:
            reader.refused += 1
            time.sleep(0.1)
            continue
        got, name = 0, b""
        while time.monotonic() < until and (line := answer.readline()):
            if line.startswith(b"event: "):
                name = line[7:].strip()
            elif line.startswith(b"data: ") and name == b"piece":
                if not got:
                    reader.first.append(time.monotonic() - began)
                got += len(json.loads(line[6:])["text"])
        reader.chars += got
        reader.seconds += time.monotonic() - began
        connection.close()


def memory(pid: int) -> float:
    """MiB that a process has of its own."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def bad(number: int, random: random.Random) -> tuple[str, str, bytes, dict[str, str]]:
    """One of many requests that cannot be answered: method, path, body, headers."""
    junk = random.randbytes(random.randrange(1, 400))
    path = random.choice(["/v1/sample", "/v1/score", "/v1/fill", "/v1/classify", "/v1/caption", "/v1/transcribe"])
    asked = {"prime": "a", "stream": random.random() < 0.5}
    cases = [
        ("POST", "/v1/sample", junk, JSON),
        ("POST", "/v1/sample", b"[" * 5000, JSON),
        ("POST", "/v1/sample", b'{"prime": "\\ud800"}', JSON),
        ("POST", "/v1/sample", json.dumps(asked | {"length": random.choice([-1, 0, 10**9, 1.5, "9", [1]])}).encode(), JSON),
        ("POST", "/v1/sample", json.dumps(asked | {"temperature": random.choice([-1, 1e9, "hot", {}])}).encode(), JSON),
        ("POST", "/v1/sample", json.dumps(asked | {"top_p": random.choice([0, -1, 2, "x"])}).encode(), JSON),
        ("POST", "/v1/sample", json.dumps(asked | {"form": random.choice(["9999x9999", "", "x", "0x0", "4x" + "9" * 50])}).encode(), JSON),
        ("POST", "/v1/sample", json.dumps(asked | {"acrostic": "\0\u202e", "lines": 1}).encode(), JSON),
        ("POST", "/v1/sample", json.dumps(asked | {"model": random.choice(["none", "../x", "\0", 3])}).encode(), JSON),
        ("POST", "/v1/sample", json.dumps(asked | {"seed": 1 << 70}).encode(), JSON),
        ("POST", "/v1/sample", b'{"temperature": NaN}', JSON),
        ("POST", "/v1/sample", b'{"temperature": 1e999}', JSON),
        ("POST", "/v1/sample", json.dumps({"prime": "x" * 10_001}).encode(), JSON),
        ("POST", "/v1/sample", b'{"prime": "' + b"x" * (300 << 10) + b'"}', JSON),
        ("POST", "/v1/score", b'{"text": "' + b"x" * 20_001 + b'"}', JSON),
        ("POST", "/v1/score", b'{"text": ""}', JSON),
        ("POST", path, junk, {}),
        ("POST", path, junk, {"Content-Type": "text/plain"}),
        ("POST", "/v1/sample", b"{}", JSON | {"Origin": "http://evil.example"}),
        ("POST", "/v1/sample", b"{}", JSON | {"Host": "evil.example"}),
        ("POST", "/v1/caption?beam=99999&model=" + "m" * 100, junk, {"Content-Type": "image/png"}),
        ("GET", "/" + "a" * random.randrange(1, 4000), b"", {}),
        ("GET", "/../../etc/passwd", b"", {}),
        ("GET", "/v1/sample", b"", {}),
        ("DELETE", "/v1/models", b"", {}),
        ("PUT", "/v1/score", junk, JSON),
    ]
    return cases[number % len(cases)]


def attack(port: int, count: int) -> tuple[Counter[int], list[str]]:
    """The statuses, and what was wrong with an answer."""
    drawn = random.Random(1)
    statuses: Counter[int] = Counter()
    wrong = []
    for number in range(count):
        method, path, body, headers = bad(number, drawn)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have answered without reading all of it
            connection.request(method, path, body or None, headers)
        answer = connection.getresponse()
        content = answer.read()
        statuses[answer.status] += 1
        line = json.loads(content).get("error", "") if answer.headers["content-type"] == "application/json" else ""
        if not 400 <= answer.status < 500 or not line or "\n" in line or "Traceback" in line:
            wrong.append(f"{method} {path[:60]} {body[:60]!r}: {answer.status} {content[:100]!r}")
        connection.close()
    return statuses, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model of task lm; left out, one of random weights, 2x128 units")
    parser.add_argument("--readers", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--bad", type=int, default=1000, metavar="N", help="malformed and oversized requests")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = asked.model
        if model is None:
            model = str(Path(folder, "2x128.safetensors"))
            bench_sampling.made(bench_sampling.SHAPES["2x128"], "lstm", Path(model))
        errors = Path(folder, "stderr")
        with errors.open("w") as stderr:
            command = [sys.executable, "-m", "charrnn", "serve", model, "--port", "0"]
            server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
        assert server.stdout is not None
        try:
            told = server.stdout.readline()
            found = re.search(r":(\d+)/", told)
            if found is None:
                raise SystemExit(f"the server did not begin: {told}{errors.read_text()}")
            failed = measure(int(found[1]), server.pid, asked.readers, asked.seconds, asked.bad)
        finally:
            server.terminate()
            server.wait(30)
        said = errors.read_text()
        print(f"said on standard error: {len(said.splitlines())} lines")
        if said:
            print(said[:2000])
        return 1 if failed or said else 0


def measure(port: int, pid: int, count: int, seconds: float, requests: int) -> bool:
    before = memory(pid)
    readers = [Reader() for _ in range(count)]
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=read, args=(port, until, reader)) for reader in readers]
    for thread in threads:
        thread.start()
    samples = []
    while time.monotonic() < until:
        time.sleep(min(1.0, max(0.0, until - time.monotonic())))
        samples.append(memory(pid))
    for thread in threads:
        thread.join()
    rates = sorted(reader.chars / max(reader.seconds, 1e-9) for reader in readers)
    first = sorted(second for reader in readers for second in reader.first)
    third = max(1, len(samples) // 3)
    early, late = statistics.median(samples[third // 2 : third] or samples[:1]), statistics.median(samples[-max(1, third // 2) :])
    print(f"{count} readers for {seconds:g} s: {sum(reader.chars for reader in readers) / seconds:,.0f} characters a second in all")
    print(f"a reader's characters a second: slowest {rates[0]:,.0f}, median {statistics.median(rates):,.0f}")
    print(f"seconds to the first character: median {statistics.median(first):.3f}, longest {first[-1]:.3f}; {len(first):,} texts")
    print(f"refused: {sum(reader.refused for reader in readers)}")
    print(f"memory: {before:.1f} MiB at first, {early:.1f} after a third, {late:.1f} at the end")
    statuses, wrong = attack(port, requests)
    print(f"{requests:,} requests that mean no good: {dict(sorted(statuses.items()))}, {len(wrong)} not as they should be")
    for line in wrong[:10]:
        print(f"  {line}")
    print(f"memory behind them: {memory(pid):.1f} MiB")
    return bool(wrong) or rates[0] < SLOWEST or late > GROWTH * early


if __name__ == "__main__":
    sys.exit(main())
