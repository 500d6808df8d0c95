"""What the README says of forking, done as it says: its code is read from it and put where it belongs."""
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from conftest import ROOT, send_json
from test_stages import grpo_flags, grpo_records, lines, write

HERE = ("bc.py", "mps.py", "sft.py", "grpo_short.py", "env.py", "judge.py", "eval.py", "plumbing", "sandbox", "baselines",
        "assets")


def snippet(heading):
    """The code that follows a bold heading of the README."""
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        return re.search(rf"(?s)\*\*{heading}\.\*\*.*?```python\n(.*?)```", file.read())[1]


@pytest.fixture
def fork(tmp_path):
    """A copy of the code, to be changed."""
    folder = tmp_path / "fork"
    folder.mkdir()
    for name in HERE:
        source = os.path.join(ROOT, name)
        if os.path.isdir(source):
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
        else:
            shutil.copy(source, folder)
    return folder


def replace(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path} has {text.count(old)} times {old!r}"
    path.write_text(text.replace(old, new), encoding="utf-8")


def run(fork, *command):
    done = subprocess.run([sys.executable, *map(str, command)], cwd=fork, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_another_reward(fork, tmp_path, checkpoint, teacher_url):
    code = snippet("Another reward")
    assert len(code.splitlines()) <= 10
    script = (fork / "grpo_short.py").read_text(encoding="utf-8")
    old = re.search(r"(?ms)^def reward\(.*?\n\n\n", script)[0]
    replace(fork / "grpo_short.py", old, code + "\n\n")
    data = write(tmp_path / "rl.jsonl", grpo_records())
    run(fork, "grpo_short.py", *grpo_flags(checkpoint, data, tmp_path / "out", teacher_url, "--steps", 1))
    row, = lines(tmp_path / "out" / "metrics.jsonl")
    assert row["reward_steps"] >= 1 and row["reward_correct"] == 0 and "reward_chosen" not in row and row["dropped"] == 0
    assert "reward_steps" in lines(tmp_path / "out" / "rollouts.jsonl")[0]


def test_another_engine(fork, tmp_path):
    engines = fork / "plumbing" / "engines.py"
    engines.write_text(engines.read_text(encoding="utf-8") + "\n\n" + snippet("Another engine"), encoding="utf-8")
    old = '    if args.engine == "url":\n        return URLEngine'
    replace(engines, old, '    if args.engine == "constant":\n        return ConstantEngine()\n' + old)
    replace(fork / "plumbing" / "cli.py", 'ENGINES = ["torch", "vllm", "url"]', 'ENGINES = ["torch", "vllm", "url", "constant"]')
    data = write(tmp_path / "tasks.jsonl", [{"id": "a", "question": "6 x 7?", "answer": "42"},
                                            {"id": "b", "question": "6 x 8?", "answer": "48"}])
    run(fork, "eval.py", "run", "--engine", "constant", "--model", "none", "--tasks", data, "--metric", "rule",
        "--out", tmp_path / "out")
    found = {p["id"]: (p["prediction"], p["correct"]) for p in lines(tmp_path / "out" / "predictions.jsonl")}
    assert found == {"a": ("42", True), "b": ("42", False)}


class Oracle(BaseHTTPRequestHandler):
    """A teacher of one's own: it plans, searches for the question, and answers with what it found."""

    def do_GET(self):
        send_json(self, {"data": [{"id": "oracle"}]})

    def do_POST(self):
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][1]["content"]
        question = re.search(r"# Question\n(.*)", prompt)[1]
        if "# Trajectory" not in prompt:
            text = "I will look it up."
        elif "web_search" not in prompt:
            text = f"<thought>I search.</thought><code>page = web_search({question!r})\nprint(page)</code>"
        else:
            text = "<thought>Found.</thought><code>final_answer_print(page.split()[-1].strip('.'))</code>"
        send_json(self, {"choices": [{"message": {"content": text}}], "usage": {}})

    def log_message(self, *_):
        pass


def test_another_world(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Oracle)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    corpus = write(tmp_path / "corpus.jsonl", [{"title": "Peru", "text": "The capital of Peru is Lima."},
                                               {"title": "Chile", "text": "A long country is Chile."}])
    data = write(tmp_path / "tasks.jsonl", [{"id": "a", "question": "What is the capital of Peru?", "answer": "Lima"}])
    run(ROOT, "bc.py", "--tasks", data, "--out", tmp_path / "bc.jsonl", "--search", f"local:{corpus}",
        "--teacher-url", f"http://127.0.0.1:{server.server_address[1]}")
    server.shutdown()
    record, = lines(tmp_path / "bc.jsonl")
    assert record["prediction"] == "Lima" and "Title: Peru" in record["messages"][4]["content"]
