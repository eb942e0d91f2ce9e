"""What our client adds to a server's times: the engine `server` beside a minimal client by hand, in turns, A B B A.

    python benchmarks/client_cost.py --pairs 100                    # a scripted server, whose delays are known
    python benchmarks/client_cost.py --pairs 100 --model smollm2    # and llama-server, from the wheel xllamacpp
    python benchmarks/client_cost.py --pairs 30 --model smollm2 --transformers   # and `transformers serve`

Ours is a timed round as in any run: `ready`, counters, clock, `respond`. The one by hand knows one answer of one
server: a socket that is open and has been answered on, the request as bytes, a stamp just before `sendall`, a stamp
after each `recv` for the tokens whose events are whole by then, and nothing else in between. Told are the median
difference of each pair, ours less the other, and the 95 % interval of that median by order statistics.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import shlex
import socket
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter_ns

from pytest_infer.engines.base import Engine, EngineOptions, ServerOptions
from pytest_infer.engines.lookup import create
from pytest_infer.measure.asking import Asking
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.measure.rounds import quiet_gc, timed_round
from pytest_infer.prompts import Prompt
from pytest_infer.records import Limits

TESTS = Path(__file__).parents[1] / "tests"
PROMPT = Prompt(name="client", text="Once upon a time there was a small village near the sea.")
SCRIPT = {"kind": "llama", "answers": [{"texts": [" a"], "first_s": 0.02, "gap_s": 0.005}]}
NATIVE = re.compile(rb'"tokens": ?\[\d[^\n]*\n\n')
COMPLETIONS = re.compile(rb'"choices": ?\[\{"index": ?0, ?"text"[^\n]*\n\n')
"""A token in what llama-server and `transformers serve` stream; the latter's last event begins with why it ended."""
Times = dict[str, float]


def told(start_ns: int, stamps_ns: Sequence[int]) -> Times:
    """Return the times of a round, µs."""
    gaps = sorted((b - a) / 1e3 for a, b in itertools.pairwise(stamps_ns))
    longest = statistics.quantiles(gaps, n=100, method="inclusive")[-1]
    return {"TTFT": (stamps_ns[0] - start_ns) / 1e3, "ITL mean": statistics.fmean(gaps), "ITL p99": longest}


class ByHand:
    """The other client."""

    def __init__(self, engine: Engine, port: int, ids: Sequence[int], tokens: int) -> None:
        self._port, self._tokens, self._token = port, tokens, NATIVE if ids else COMPLETIONS
        path, how = "/completion", {
            "prompt": list(ids), "n_predict": tokens, "stream": True, "return_tokens": True, "cache_prompt": False,
            "samplers": ["temperature"], "temperature": 0,
        }  # fmt: skip
        if not ids:
            served, path = engine.served(), "/v1/completions"
            assert served is not None
            how = {"model": served.model, "prompt": PROMPT.text, "max_tokens": tokens, "stream": True, "temperature": 0}
        body = json.dumps(how).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        self._request = f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    def round(self) -> Times:
        """Run a round."""
        line = socket.create_connection(("127.0.0.1", self._port))
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        heard = b""
        while not heard.endswith(b"}"):
            heard += line.recv(65536)
        came = []
        with quiet_gc():
            start = perf_counter_ns()
            line.sendall(self._request)
            while data := line.recv(65536):
                came.append((perf_counter_ns(), data))
        heard, stamps = b"", list[int]()
        for now, data in came:
            heard += data
            stamps += [now] * (len(self._token.findall(heard)) - len(stamps))
        line.close()
        if len(stamps) != self._tokens:
            raise SystemExit(f"by hand: {len(stamps)} tokens of {self._tokens}: {heard[-300:]!r}")
        return told(start, stamps)


def pairs(engine: Engine, port: int, tokens: int, count: int) -> Iterator[tuple[Times, Times]]:
    """Return the times of ours and of the other, pair by pair, in turns."""
    asking, limits = Asking(prompt=PROMPT, ids=engine.encode(PROMPT)), Limits(max_new_tokens=tokens)
    other = ByHand(engine, port, asking.ids, tokens)
    system = SystemCounters(observed=engine.observed())

    def ours() -> Times:
        trace = timed_round(engine, asking, limits, system).trace
        return told(trace.start_ns, trace.stamps_ns)

    for number in range(-2, count):  # two to warm up
        if number % 2:
            theirs, own = other.round(), ours()
        else:
            own, theirs = ours(), other.round()
        if number >= 0:
            yield own, theirs


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and its 95 % interval: the order statistics whose ranks a fair coin leaves outside in 5 %."""
    ordered, half = sorted(values), 0.98 * math.sqrt(len(values))
    low, high = math.floor(len(values) / 2 - half), math.ceil(len(values) / 2 + half) - 1
    return statistics.median(ordered), ordered[max(low, 0)], ordered[min(high, len(ordered) - 1)]


@contextmanager
def serving(command: str, model: str, cache: str) -> Iterator[tuple[Engine, int]]:
    """Run a server, and return the engine that measures it, and its port."""
    server = ServerOptions(command=command, cache=cache, timeout_s=60.0)
    engine = create("server", EngineOptions(model=model, server=server, progress=print))
    try:
        engine.load()
        served = engine.served()
        assert served is not None
        yield engine, int(served.url.rpartition(":")[2])
    finally:
        engine.close()


def main() -> None:
    """Measure, and print a line a figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--model", action="append", default=[], help="a bundled model or a GGUF file, for llama-server")
    parser.add_argument("--transformers", action="store_true", help="`transformers serve` too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.json"
        script.write_text(json.dumps(SCRIPT), encoding="utf-8")
        scripted = [sys.executable, str(TESTS / "scripted_server.py"), "--script", str(script)]
        commands = [("scripted", f"{shlex.join(scripted)} --model {{model}} --port {{port}}", "m", "off")]
        run = f"{sys.executable} -m pytest_infer.engines.llamacpp -m {{gguf}} --port {{port}} -t 1"
        commands += [(f"llama-server {Path(model).stem}", run, model, "off") for model in given.model]
        if given.transformers:  # which has no cache of prompts
            run = "transformers serve {model} --port {port} --host 127.0.0.1"
            commands += [(f"transformers {model}", run, model, "warm") for model in given.model]
        for name, command, model, cache in commands:
            with serving(command, model, cache) as (engine, port):
                found = list(pairs(engine, port, given.tokens, given.pairs))
            for figure in found[0][0]:
                usual = statistics.median(other[figure] for _, other in found)
                mid, low, high = median_interval([own[figure] - other[figure] for own, other in found])
                print(f"{name:<24} {figure:<9} {usual:10.1f} µs by hand, ours {mid:+7.1f} [{low:+.1f}, {high:+.1f}]")


if __name__ == "__main__":
    main()
