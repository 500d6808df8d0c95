"""Speed of the sandboxed interpreter beside other ways to run an agent's steps, on equal snippets.

    python bench/env.py                  # about three minutes on two cores
    python bench/env.py --out env.json   # the figures also as JSON

(a) a process per step, as the released SCoRe code does it: fork, execute, send back what can be pickled;
(b) `python -c` per step, which has to repeat the earlier steps to have their variables;
(c) smolagents' LocalPythonExecutor, which isolates nothing: it interprets the syntax tree in this process;
and, as the bound that no sandbox passes, exec() in one process with all libraries and caches warm: what the
snippets themselves take to compute. Where exec() is not 100 times as fast as (b), nothing is.
Every way runs the trajectories one after the other; the last row runs ours from 16 threads. "wrong" counts
the steps that print something else than in the sandbox ("env.py" in the table). Not measured: searches. Other
work on the machine blurs all figures: see `load` in the JSON.
"""
import argparse
import contextlib
import io
import json
import multiprocessing
import os
import pathlib
import pickle
import re
import statistics
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))                              # before this folder, whose env.py is this file
import env  # noqa: E402
from sandbox import Interpreter  # noqa: E402
from sandbox.interpreter import ZYGOTE  # noqa: E402

# Trajectories of four steps as agents write them, by kind. Every step prints something.
TRAJECTORIES = {
    "arithmetic": [
        ["price = 12.5\ncount = 8\nprint(price * count)",
         "total = price * count\ndiscount = total * 0.15\nprint(discount)",
         "def tax(x):\n    return round(x * 1.2, 2)\nprint(tax(total - discount))",
         "print(f'{tax(total - discount):.1f}')"],
        ["words = 'the quick brown fox jumps over the lazy dog'.split()\nprint(len(words))",
         "lengths = {w: len(w) for w in words}\nprint(max(lengths.values()))",
         "import re\nprint(re.findall(r'o.', ' '.join(words)))", "print(sorted(set(''.join(words)))[:5])"]],
    "loops": [
        ["primes = [n for n in range(2, 3000) if all(n % d for d in range(2, int(n ** 0.5) + 1))]\n"
         "print(len(primes))",
         "total = 0\nfor p in primes:\n    if p % 4 == 1:\n        total += p * p\nprint(total)",
         "def collatz(n):\n    steps = 0\n    while n != 1:\n"
         "        n = n // 2 if n % 2 == 0 else 3 * n + 1\n        steps += 1\n"
         "    return steps\nprint(max(range(1, 1500), key=collatz))",
         "count = 0\nfor a in range(1, 120):\n    for b in range(a, 120):\n        c = (a*a + b*b) ** 0.5\n"
         "        if c == int(c):\n            count += 1\nprint(count)"]],
    "numpy": [
        ["import numpy as np\nA = np.arange(36).reshape(6, 6) + np.eye(6)\nprint(np.linalg.det(A).round(3))",
         "B = A.dot(A.T)\nprint(np.trace(B))", "x = np.linalg.solve(A, np.ones(6))\nprint(x.sum().round(4))",
         "rng = np.random.RandomState(0)\nhits = (rng.rand(100_000, 2) ** 2).sum(1) < 1\n"
         "print(4 * hits.mean())"]],
    "sympy": [
        ["import sympy as sp\nx, y = sp.symbols('x y')\nprint(sp.factor(x**4 - 5*x**2 + 4))",
         "print(sp.solve([x + 2*y - 7, 3*x - y - 7], [x, y]))",
         "f = x**3 - 3*x + 1\nprint(sp.diff(f, x), sp.integrate(f, x))",
         "print(sp.simplify(sp.sin(x)**2 + sp.cos(x)**2 + sp.expand((x + 1)**2) - x**2))"],
        ["from sympy import symbols, Eq, solve\nn = symbols('n')\nprint(solve(Eq(n * (n + 1) / 2, 210), n))",
         "import sympy\nprint(sympy.factorint(5040))", "print(sympy.Matrix([[1, 2], [3, 4]]).det())",
         "print(sympy.summation(1 / (n * (n + 1)), (n, 1, 10)))"]],
}


class Ours:
    name = "env.py"

    def __init__(self) -> None:
        self.interpreter = Interpreter(seconds=30)

    def step(self, code: str) -> str:
        return self.interpreter.run(code).text

    def close(self) -> None:
        self.interpreter.close()


def forked_step(code: str, state: bytes, modules: dict[str, str], pipe: Any) -> None:
    """Body of (a)'s process: what can be pickled survives the step."""
    scope = pickle.loads(state)
    for name, module in modules.items():
        scope[name] = __import__(module)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, scope)
    kept = {}
    for name, value in scope.items():
        if name == "__builtins__":
            continue
        try:
            pickle.dumps(value)
        except Exception:                                  # lambdas, generators, classes ... are lost
            continue
        kept[name] = value
    modules = {name: value.__name__ for name, value in scope.items() if isinstance(value, types.ModuleType)}
    pipe.send((out.getvalue(), pickle.dumps(kept), modules))


class ProcessPerStep:
    name = "(a) process per step"

    def __init__(self) -> None:
        self.state = pickle.dumps({})
        self.modules: dict[str, str] = {}
        self.functions = ""

    def step(self, code: str) -> str:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        args = (self.functions + code, self.state, self.modules, theirs)
        process = context.Process(target=forked_step, args=args)
        process.start()
        theirs.close()
        text, self.state, self.modules = ours.recv()
        process.join()
        defined = re.findall(r"^def .*\n(?:    .*\n?)*", code, re.M)
        self.functions += "".join(defined) + "\n"          # kinder than the release, which loses them
        return text.rstrip()

    def close(self) -> None:
        pass


class Subprocess:
    name = "(b) python -c per step"

    def __init__(self) -> None:
        self.past = ""

    def step(self, code: str) -> str:
        quiet = "import io, sys\nsys.stdout = io.StringIO()\n"
        loud = "sys.stdout = sys.__stdout__\n"
        source = quiet + self.past + loud + code
        self.past += code + "\n"
        return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True).stdout.rstrip()

    def close(self) -> None:
        pass


class Smolagents:
    name = "(c) smolagents local"

    def __init__(self) -> None:
        from smolagents.local_python_executor import LocalPythonExecutor
        self.executor = LocalPythonExecutor(["numpy", "numpy.*", "sympy", "sympy.*", "re"])
        self.executor.send_tools({})

    def step(self, code: str) -> str:
        from smolagents.local_python_executor import InterpreterError
        try:
            return self.executor(code).logs.rstrip()
        except InterpreterError as error:                  # counted under "wrong"
            return str(error)

    def close(self) -> None:
        pass


class Exec:
    name = "exec, warm, nothing isolated"

    def __init__(self) -> None:
        self.scope: dict[str, Any] = {}

    def step(self, code: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, self.scope)
        return out.getvalue().rstrip()

    def close(self) -> None:
        pass


def all_trajectories() -> list[list[str]]:
    return [trajectory for group in TRAJECTORIES.values() for trajectory in group]


def play(way: type, trajectories: list[list[str]]) -> tuple[list[float], list[str]]:
    """-> seconds of each step, its text; the first step of a trajectory includes the start."""
    seconds = []
    texts = []
    for steps in trajectories:
        start = time.perf_counter()
        runner = way()
        for code in steps:
            texts.append(runner.step(code))
            seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
        runner.close()
    return seconds, texts


def measure(way: type, repeats: int, expected: dict[str, list[str]]) -> dict[str, float]:
    """A row of the table. expected: what each kind's steps print; the first way that is measured fills it."""
    times = 1 if way is Subprocess else repeats            # it is slow
    row = {}
    wrong = 0
    everything = []
    firsts = []
    for kind, trajectories in TRAJECTORIES.items():
        seconds, texts = play(way, trajectories * times)
        expected.setdefault(kind, texts[:4 * len(trajectories)])
        row[kind + " steps/s"] = len(seconds) / sum(seconds)
        wrong += sum(a != b for a, b in zip(texts, expected[kind] * times, strict=True))
        everything += seconds
        firsts += seconds[::4]
    row["wrong"] = wrong / times
    row["all steps/s"] = len(everything) / sum(everything)
    row["start + first step ms"] = 1000 * statistics.median(firsts)
    row["step ms p50"] = 1000 * statistics.median(everything)
    row["step ms p90"] = 1000 * statistics.quantiles(everything, n=10)[-1]
    return row


def compare(repeats: int) -> dict[str, dict[str, float]]:
    """Rows of the table: steps per second by kind and in all, start with the first step, step times."""
    rows = {}
    expected: dict[str, list[str]] = {}
    for way in Ours, ProcessPerStep, Subprocess, Smolagents, Exec:
        try:
            play(way, TRAJECTORIES["arithmetic"])          # imports, the zygote
        except ImportError as error:
            print(f"{way.name} is left out: {error}")
            continue
        rows[way.name] = measure(way, repeats, expected)
    trajectories = all_trajectories() * (4 * repeats)
    start = time.perf_counter()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda steps: play(Ours, [steps]), trajectories))
    seconds = time.perf_counter() - start
    rows["env.py, 16 threads"] = {"all steps/s": 4 * len(trajectories) / seconds}
    return rows


def prefixes() -> list[list[tuple[str, str]]]:
    """Prefixes of the authors' recorded trajectories, with their searches' replies; else those above."""
    found = []
    for path in sorted(ROOT.glob("../shared/data/score_release/*_trajectories.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            steps = [(s["code"], s["observation"]) for s in json.loads(line)["steps"] if s["code"].strip()]
            found += [steps[:k] for k in range(1, len(steps))]
    if found:
        return found
    for trajectory in all_trajectories():
        steps = [(code, "") for code in trajectory]
        found += [steps[:k] for k in (1, 2, 3)]
    return found


class RecordedSearch:
    """Answers every search of a step with what was recorded."""

    def __init__(self) -> None:
        self.reply = ""

    def __call__(self, query: str) -> str:
        return self.reply


def seconds_of_first_step(interpreter: Interpreter) -> float:
    start = time.perf_counter()
    interpreter.run("1")
    return time.perf_counter() - start


def fork_latency(every: int) -> dict[str, float]:
    """Milliseconds from fork() to the copy's first answer, over the prefixes; beside it an empty start."""
    forks = []
    starts = []
    for steps in prefixes()[::every]:
        recorded = RecordedSearch()
        original = Interpreter(search=recorded, seconds=60)
        for code, reply in steps:
            recorded.reply = reply
            original.run(code)
        copy = original.fork()
        forks.append(1000 * seconds_of_first_step(copy))
        original.close()
        copy.close()
        fresh = Interpreter()
        starts.append(1000 * seconds_of_first_step(fresh))
        fresh.close()
    return {"empty start ms p50": statistics.median(starts), "fork ms p50": statistics.median(forks),
            "fork ms p90": statistics.quantiles(forks, n=10)[-1], "prefixes": len(forks)}


def crowd(number: int = 256) -> dict[str, Any]:
    """Memory of many live interpreters, shared pages counted once (proportional set size)."""
    everyone = [Interpreter() for _ in range(number)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: one.run(TRAJECTORIES["sympy"][0][0]), everyone))
    sizes = []
    try:
        for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
            group = path.read_text().rsplit(")", 1)[1].split()[2]
            if group == str(ZYGOTE.process.pid):           # the zygote leads the group of its sessions
                text = (path.parent / "smaps_rollup").read_text()
                sizes.append(int(re.search(r"^Pss:\s+(\d+)", text, re.M)[1]))
    except OSError as error:
        return {"memory of 256": f"unknown ({error})"}
    finally:
        for one in everyone:
            one.close()
    return {"interpreters": number, "MiB in all": sum(sizes) / 1024}


class StubEngine:
    """An engine that generates nothing: every episode plays a script."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def play(self, episodes: list[env.Episode], **_: Any) -> None:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(self.play_one, range(len(episodes)), episodes))

    def play_one(self, number: int, episode: env.Episode) -> None:
        scripts = all_trajectories()
        script = scripts[number % len(scripts)] + scripts[(number + 1) % len(scripts)]
        episode.turn("<first_thought>plan</first_thought>")
        for code in script[:self.steps]:
            episode.turn(f"<thought>next</thought><code>{code}</code>")


def rollout_overhead(trajectories: int = 256, steps: int = 8) -> dict[str, float]:
    """A rollout with an engine that generates nothing. -> the share of its wall time spent in this process"""
    engine = StubEngine(steps)
    starts = [{"id": str(i), "question": "?", "answer": "!"} for i in range(trajectories)]
    env.rollout(engine, starts[:2], max_steps=steps)
    wall = time.perf_counter()
    own = time.process_time()
    done = env.rollout(engine, starts, max_steps=steps)
    wall = time.perf_counter() - wall
    own = time.process_time() - own
    lengths = {len(trajectory["messages"]) for trajectory in done}
    assert lengths == {2 * steps + 3}, lengths
    return {"rollout s": wall, "own Python": own / wall, "steps": trajectories * steps}


def print_table(rows: dict[str, dict[str, float]]) -> None:
    """The rows as Markdown, and how many times as fast as the others ours is."""
    mine = rows["env.py"]
    columns = list(mine)
    print("\n| | " + " | ".join(columns) + " |\n|---" + "|---" * len(columns) + "|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[c]:.4g}" if c in row else "" for c in columns) + " |")
    print()
    for name, row in rows.items():
        if name.startswith(("(", "exec")):
            kinds = [c for c in columns if c.endswith(" steps/s")]
            times = [f"{c.removesuffix(' steps/s')} {mine[c] / row[c]:.3g}" for c in kinds]
            print(f"env.py / {name}, steps/s:", ", ".join(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=10, help="runs of every trajectory (default 10)")
    parser.add_argument("--every", type=int, default=2, help="fork at every n-th recorded prefix (default 2)")
    parser.add_argument("--out", help="JSON file for the figures (default: none)")
    args = parser.parse_args()
    figures: dict[str, Any] = {"load": os.getloadavg()[0], "cores": len(os.sched_getaffinity(0)),
                               "python": sys.version.split()[0]}
    figures["rows"] = compare(args.repeats)
    print_table(figures["rows"])
    for part, arguments in (fork_latency, [args.every]), (crowd, []), (rollout_overhead, []):
        measured = part(*arguments)
        figures.update(measured)
        numbers = [f"{key} {value:.4g}" for key, value in measured.items() if not isinstance(value, str)]
        print("; ".join(numbers))
    figures["load after"] = os.getloadavg()[0]
    if args.out:
        pathlib.Path(args.out).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
