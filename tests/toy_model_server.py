"""A server of a language model as a node starts one, without the model: it is up, silent, busy or gone as it is told.

    python toy_model_server.py HOST PORT MODEL FOLDER

A file in the folder tells it: `slow` (not up before that is away), `sick` (up, and says that it is not), `frozen` (it
answers nobody), `end` (it ends, with a word), `other` (it has another model). It writes there the process ids of itself
and of a child that it starts and that goes its own way, and does not end when it is told to.
"""

import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HOST, PORT, MODEL, FOLDER = sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
METRICS = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
"""
SAYS = json.dumps({"answer": "at nine twenty", "passages": [1], "confidence": 0.9})


def told(name: str) -> bool:
    return (FOLDER / name).exists()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        while told("frozen"):
            time.sleep(0.1)
        if told("end"):
            print(f"it was told to end \x1b[31m at http://{HOST}:{PORT}/v1", flush=True)
            os._exit(3)
        pages = {
            "/health": "",
            "/metrics": METRICS,
            "/v1/models": json.dumps({"data": [{"id": "another" if told("other") else MODEL}]}),
        }
        self._say(503 if told("sick") else 200 if self.path in pages else 404, pages.get(self.path, ""))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        pieces = [{"choices": [{"delta": {"content": SAYS}}]}, {"choices": [{"delta": {}, "finish_reason": "stop"}]}]
        lines = [f"data: {json.dumps(piece)}\n\n" for piece in pieces]
        self._say(200, "".join([*lines, "data: [DONE]\n\n"]))

    def _say(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Set-Cookie", "\xde=1")  # which no client can send back
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", STUBBORN], start_new_session=True)
(FOLDER / "pids").write_text(f"{os.getpid()} {child.pid}")
with (FOLDER / "starts").open("a") as starts:
    starts.write("x")
while told("slow"):
    time.sleep(0.05)
ThreadingHTTPServer((HOST, PORT), Handler).serve_forever()
