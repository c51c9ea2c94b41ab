"""How long `vote -> saved` takes, how fast 10,000 items are on screen, and whether memory grows.

    python benchmarks/rank_latency.py [--votes 10000] [--items 10000] [--answers 4]

Starts `alignkit rank` on loopback as a user would, votes over one HTTP connection and prints what
it measured as JSON; exits 1 when a limit is missed. First paint needs Chromium and Playwright and
is null without them.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

LIMITS = {"p99_ms": 20.0, "first_paint_ms": 1000.0, "memory_growth_mib": 16.0}
SERVE = "import sys; from alignkit.cli import main; main(['rank', *sys.argv[1:]])"
CHROMIUM_ARGUMENTS = [
    "--no-sandbox", "--headless", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def write_items(path: Path, count: int, answers: int) -> None:
    """Items of about 2 kB with distinct answers."""
    filler = "The quick brown fox jumps over the lazy dog. " * 10
    with path.open("w") as file:
        for n in range(count):
            candidates = [
                {
                    "cid": f"c{k}",
                    "messages": [{"role": "assistant", "content": f"{n}.{k} {filler}"}],
                }
                for k in range(answers)
            ]
            prompt = [{"role": "user", "content": f"Question {n}? {filler}"}]
            row = {"kind": "candidates", "id": f"item-{n}", "prompt": prompt}
            file.write(json.dumps(row | {"candidates": candidates}) + "\n")


def resident_mib(pid: int) -> float:
    """Memory of the process, from the kernel."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has no VmRSS")


class Voter:
    """One annotator over one connection."""

    def __init__(self, link: str) -> None:
        self.host = link.split("/")[2]
        self.wire = http.client.HTTPConnection(self.host)
        cookie = self.ask("GET", link.partition(self.host)[2])[1].split(";")[0]
        self.headers = {
            "cookie": cookie,
            "origin": f"http://{self.host}",
            "content-type": "application/json",
        }

    headers: dict[str, str] = {}

    def ask(self, method: str, path: str, body: object = None) -> tuple[bytes, str]:
        """The body and the cookie of an answer; anything but success is an error."""
        sent = json.dumps(body) if body is not None else None
        self.wire.request(method, path, sent, self.headers)
        response = self.wire.getresponse()
        content = response.read()
        if response.status >= 400:
            raise RuntimeError(f"{response.status}: {content!r}")
        return content, response.headers.get("set-cookie", "")


def vote_all(voter: Voter, votes: int, pid: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each vote, and memory after each tenth of them."""
    shown = json.loads(voter.ask("GET", "/api/next")[0])
    took: list[float] = []
    memory: list[float] = []
    for number in range(votes):
        body = {"key": str(uuid.uuid4()), "ticket": shown["item"]["ticket"], "order": "2>1=3"}
        start = time.perf_counter()
        answer = voter.ask("POST", "/api/vote", body)[0]
        took.append((time.perf_counter() - start) * 1000)
        shown = json.loads(answer)
        if (number + 1) % max(1, votes // 10) == 0:
            memory.append(resident_mib(pid))
    return took, memory


def first_paint(link: str) -> float | None:
    """Milliseconds from the request to the first item on screen, in Chromium."""
    chromium = shutil.which("chromium")
    if chromium is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGUMENTS)
        page = browser.new_page()
        page.goto(link)
        page.locator(".completion").first.wait_for()
        start = time.perf_counter()
        page.reload(wait_until="commit")
        page.locator(".completion").first.wait_for()
        elapsed = (time.perf_counter() - start) * 1000
        browser.close()
    return elapsed


def measure(items: int, answers: int, votes: int) -> dict[str, float | int | None]:
    """Everything, with a server of its own."""
    with tempfile.TemporaryDirectory() as folder:
        candidates, output = Path(folder) / "c.jsonl", Path(folder) / "r.jsonl"
        write_items(candidates, items, answers)
        options = [str(candidates), "--output", str(output), "--annotator", "ann", "--port", "0"]
        start = time.perf_counter()
        command = [sys.executable, "-c", SERVE, *options]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            link = server.stdout.readline().split()[1]
            ready = time.perf_counter() - start
            paint = first_paint(link)
            took, memory = vote_all(Voter(link), min(votes, items), server.pid)
        finally:
            server.terminate()
            server.wait()
        stored = output.read_bytes().count(b"\n")
        if stored != len(took):
            raise RuntimeError(f"{stored} events stored, {len(took)} acknowledged")
    cuts = statistics.quantiles(took, n=100)
    return {
        "items": items,
        "votes": len(took),
        "ready_s": round(ready, 2),
        "first_paint_ms": None if paint is None else round(paint, 1),
        "p50_ms": round(cuts[49], 2),
        "p99_ms": round(cuts[98], 2),
        "max_ms": round(max(took), 2),
        "memory_first_tenth_mib": round(memory[0], 1),
        "memory_last_mib": round(memory[-1], 1),
        "memory_growth_mib": round(memory[-1] - memory[0], 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--answers", type=int, default=4)
    parser.add_argument("--votes", type=int, default=10_000)
    asked = parser.parse_args()
    measured = measure(asked.items, asked.answers, asked.votes)
    print(json.dumps(measured, indent=1))
    missed = [
        f"{name} is {value}, above {limit}"
        for name, limit in LIMITS.items()
        if (value := measured[name]) is not None and value > limit
    ]
    for line in missed:
        print(line, file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
