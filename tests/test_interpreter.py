"""sandbox/: hostile and awkward programs, state, forks, real code; and the web search, plumbing/search.py."""
import collections
import http.server
import json
import os
import pathlib
import platform
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import sandbox  # noqa: E402
from plumbing.cli import cli  # noqa: E402
from plumbing.search import SearchFailed, make_search  # noqa: E402
from sandbox import interpreter, session  # noqa: E402

SECRET = "k3y-9f8e7d6c5b4a"
linux = pytest.mark.skipif(not session.LINUX, reason="the sandbox needs Linux")
pytestmark = linux


@pytest.fixture(scope="module", autouse=True)
def plain():
    """The sandbox as it is by default, whatever an earlier test of this process chose."""
    sandbox.set_sandbox("auto")


@pytest.fixture
def py():
    sealed = sandbox.Interpreter(seconds=2, memory=512 << 20)
    yield sealed
    sealed.close()


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    """A file, an environment variable and a listener on the loopback that model code must not reach."""
    path = tmp_path_factory.mktemp("secret") / "answers.jsonl"
    path.write_text(SECRET)
    listener = socket.create_server(("127.0.0.1", 0))
    os.environ["PLANTED_KEY"] = SECRET
    yield {"path": str(path), "dir": str(path.parent), "port": listener.getsockname()[1], "pid": os.getpid(),
           "repo": str(ROOT)}
    listener.close()
    del os.environ["PLANTED_KEY"]


def children(pid):
    """Process ids of all descendants of `pid` that are not zombies."""
    parents = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rsplit(")", 1)[1].split()[:2]
        except OSError:
            continue
        if state != "Z":
            parents[int(stat.parent.name)] = int(parent)
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def eventually(condition, seconds=60):                     # as long as a busy machine may need
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


# ---- what the model sees ----

OBSERVATIONS = {
    "print": ("print('a', 1)", "a 1"),
    "nothing": ("x = 1", "None"),
    "empty": ("", "None"),
    "comment": ("# only thinking", "None"),
    "last expression": ("x = 20\nx + 1", "21"),
    "repr of a string": ("'a' + 'b'", "'ab'"),
    "last expression is None": ("[].sort()", "None"),
    "print and value": ("print(1)\n2", "1\n2"),
    "stderr": ("import sys; print('e', file=sys.stderr)", "e"),
    "unicode": ("print('é', '数', '😀')", "é 数 😀"),
    "surrogate": ("print('a\\ud800b')", "a\\ud800b"),
    "nul": ("print('a\\0b')", "a\\x00b"),
    "main": ("if __name__ == '__main__': print('yes')", "yes"),
    "multi-line last expression": ("sum([\n 1,\n 2])", "3"),
    "numpy": ("import numpy as np\nnp.arange(3).sum()", "np.int64(3)"),
    "sympy": ("from sympy import *\nx = symbols('x')\nprint(factor(x**2 - 1))", "(x - 1)*(x + 1)"),
    "asyncio": ("import asyncio\nasync def f(): return 7\nprint(asyncio.run(f()))", "7"),
    "answer": ("final_answer_print(42)", "42"),
    "big integer": ("print(len(str(2**10000)))", "3011"),
    "redirect": ("import io, contextlib\nwith contextlib.redirect_stdout(io.StringIO()) as s: print('in')\n"
                 "print(repr(s.getvalue()))", "'in\\n'"),
    "dataclass": ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\nP(3)", "P(x=3)"),
    "time zones": ("import zoneinfo, datetime\nprint(datetime.datetime(2024, 7, 1, tzinfo="
                   "zoneinfo.ZoneInfo('Europe/Paris')).utcoffset())", "2:00:00"),
    "lazy library import": ("import sympy.physics.units as u\nprint(u.meter)", "meter"),
    "scratch file": ("open('a.txt', 'w').write('é')\nopen('a.txt', 'a').write('b')\nprint(open('a.txt').read())",
                     "éb"),
    "scratch path": ("from pathlib import Path\np = Path('p')\np.write_text('12')\np.exists(), Path('q').exists(), "
                     "p.stat().st_size, p.read_bytes(), p.unlink(), p.exists()",
                     "(True, False, 2, b'12', None, False)"),
    "removed file": ("import os\nopen('a', 'w').write('1'); os.remove('a'); open('a', 'a').write('2')\nopen('a').read()",
                     "'2'"),
    "kept file": ("from pathlib import Path\nimport os\np = Path('p')\np.write_text('12')\n"
                  "p.exists(), Path('q').exists(), p.stat().st_size, p.read_bytes(), os.path.isfile('/p'), "
                  "os.path.getsize('p'), os.access('p', os.R_OK), os.path.isdir('p'), os.access('q', os.R_OK)",
                  "(True, False, 2, b'12', True, 2, True, False, False)"),
    "flushed file": ("f = open('l', 'w'); f.write('x'); f.flush(); a = open('l').read(); f.write('y'); f.close()\n"
                     "a, open('l').read(), [i + j for i in open('l') for j in open('l')]", "('x', 'xy', ['xyxy'])"),
    "log file": ("import logging; logging.basicConfig(filename='x.log'); logging.warning('w'); open('x.log').read()",
                 "'WARNING:root:w\\n'"),
    "csv and json": ("import csv, json\nwith open('a', 'w', newline='') as f: csv.writer(f).writerow([1, 2])\n"
                     "with open('b', 'w') as f: json.dump({'a': 1}, f)\n"
                     "list(csv.reader(open('a'))), json.load(open('b'))", "([['1', '2']], {'a': 1})"),
    "packed files": ("import gzip, zipfile, pickle\nwith gzip.open('a', 'wt') as f: f.write('x')\n"
                     "with zipfile.ZipFile('b', 'w') as z: z.writestr('m', 'y')\n"
                     "with open('c', 'wb') as f: pickle.dump([1], f)\n"
                     "gzip.open('a', 'rt').read(), zipfile.ZipFile('b').read('m'), pickle.load(open('c', 'rb'))",
                     "('x', b'y', [1])"),
    "copied file": ("import shutil; open('a', 'w').write('12'); open('b', 'w').write('3'); shutil.copyfile('a', 'b')\n"
                    "open('b').read()", "'12'"),
    "numpy files": ("import numpy as np\nnp.savetxt('m', np.eye(2)); np.save('m.npy', np.loadtxt('m'))\n"
                    "print(np.load('m.npy').tolist())", "[[1.0, 0.0], [0.0, 1.0]]"),
    "threads": ("from threading import *\nxs = []\nts = [Thread(target=xs.append, args=(i,)) for i in range(3)]\n"
                "for t in ts: t.start()\nfor t in ts: t.join()\nxs, ts[0].is_alive()", "([0, 1, 2], False)"),
    "thread pool by its module": ("from concurrent.futures.thread import ThreadPoolExecutor\n"
                                  "list(ThreadPoolExecutor(2).map(abs, [-1]))", "[1]"),
    "thread pool": ("from concurrent.futures import *\nwith ThreadPoolExecutor(4) as pool:\n"
                    "    fs = [pool.submit(pow, 2, i) for i in range(3)]\n"
                    "    print(list(pool.map(str, range(2))))\n"
                    "sorted(f.result() for f in as_completed(fs)), "
                    "list(ProcessPoolExecutor().map(abs, [-1]))",
                    "['0', '1']\n([1, 2, 4], [1])"),
    "asyncio in threads": ("from asyncio import *\nasync def f(): return await gather(to_thread(pow, 2, 3))\nrun(f())",
                           "[8]"),
    "thread of its own": ("from threading import *\ndef f(): print(current_thread().name)\n"
                          "t = Thread(target=f, name='T'); t.start(); t.join(1); t.is_alive(), current_thread().name",
                          "T\n(False, 'MainThread')"),
    "asyncio queue": ("import asyncio\nasync def f():\n    q = asyncio.Queue()\n"
                      "    t = asyncio.create_task(q.get()); await q.put(5)\n    return await t\nasyncio.run(f())", "5"),
    "asyncio time-out": ("import asyncio\nasync def f():\n    try: await asyncio.wait_for(asyncio.sleep(9), 0.01)\n"
                         "    except asyncio.TimeoutError: return 'late'\nasyncio.run(f())", "'late'"),
    "seed by name": ("import random\nrandom.seed(5, version=2); a = random.random()\nrandom.seed(a=5)\n"
                     "a == random.random() == random.Random(5).random()", "True"),
    "kept stream": ("import logging; logging.basicConfig(); logging.warning('w')", "WARNING:root:w"),
    "search without a backend": ("web_search('x')", "Error: there is no web search here."),
    "standard output put back": ("import sys, io\nsys.stdout = io.StringIO(); print('in'); s = sys.stdout.getvalue()\n"
                                 "sys.stdout = sys.__stdout__; print('out', s); print('e', file=sys.__stderr__)",
                                 "out in\n\ne"),
    "bytes of standard input": ("import sys; sys.stdin.buffer.read(), sys.stdin.readline(), list(sys.stdin)", "(b'', '', [])"),
    "a shadowed builtin": ("sum = 0\n__builtins__.sum([1, 2]), __builtins__.__name__", "(3, 'builtins')"),
    "bare star in a tuple": ("*range(3),", "(0, 1, 2)"),
    "source with odd line ends": ("import inspect\ns = '\u2028\x0c\x85'\ndef f():\n    return 1\nprint(inspect.getsource(f))",
                                  "def f():\n    return 1"),
    "a line of a file": ("open('a', 'w').write('1\\n2\\n'); import linecache; linecache.getline('a', 2)", "'2\\n'"),
    "removes what it made": ("import os, pathlib\nopen('q', 'w').close()\nif os.path.exists('q'): os.remove('q')\n"
                             "os.path.exists('q'), pathlib.Path('r').write_text('1'), pathlib.Path('r').unlink(missing_ok=True)",
                             "(False, 1, None)"),
    "attributes of a file": ("f = open('a', 'w'); f.name, f.tell(), f.seekable(), f.readable()", "('a', 0, True, False)"),
    "an archive": ("import zipfile, tarfile\nwith zipfile.ZipFile('z', 'w') as z: z.writestr('w', 'w')\n"
                   "with tarfile.open('t', 'w') as t: t.add('z')\n"
                   "zipfile.ZipFile('z').namelist(), tarfile.open('t').getnames()", "(['w'], ['z'])"),
}


# What is done to a file "f" that holds "abc": the mode, operations; each result is compared with a real file's.
FILE_USES = """r read; r+ read seek(0) write('X') read; r+ seek(0,2) write('d') seek(0) read; w+ write('xy') seek(1) read;
a+ tell write('d') seek(0) read write('e') seek(0) read; a seek(0) write('z') tell; w write('é\\n') tell;
r+ seek(9) write('z') seek(0) read; r write('x'); w read; rb read(2) tell; wb write(b'x') tell;
rb+ seek(-1,2) read; ab write(b'q'); w encoding='utf-16' write('é') write('é'); q; rw; wb encoding='utf-8'"""


@pytest.mark.parametrize("use", FILE_USES.replace("\n", " ").split("; "))
def test_files_behave_as_real_ones(use, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "FOLDER", str(tmp_path / "memory"))    # which is not there: nothing real is opened
    mode, *calls = use.split()
    options = {"encoding": "utf-8"} if "b" not in mode else {}
    if calls and calls[0].startswith("encoding="):
        options = {"encoding": calls.pop(0).split("'")[1]}

    def results(opener, path, read):
        with opener(path, "w") as file:
            file.write("abc")
        seen = []
        try:
            with opener(path, mode, **options) as file:
                for call in calls:
                    seen.append(eval("file." + call if "(" in call else f"file.{call}()", {"file": file}))
        except (OSError, ValueError) as error:
            seen.append(type(error))
        return seen, read(path)

    real = results(open, str(tmp_path / "f"), lambda path: pathlib.Path(path).read_bytes())
    kept = results(session.open_file, str(tmp_path / "memory/f"), lambda path: bytes(session.FILES.pop(path)))
    assert kept == real


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_observation(py, name):
    code, expected = OBSERVATIONS[name]
    seen = py.run(code)
    assert (seen.text, seen.error) == (expected, False)


@pytest.mark.parametrize("code, expected", [
    ("from tqdm import tqdm\nfor i in tqdm(range(9)): pass\ni", "8"),
    ("from tqdm.auto import tqdm, trange\nfor i in trange(9, desc='d'): pass\n"
     "bar = tqdm(total=3); bar.update(); bar.set_postfix(a=1); bar.close(); tqdm.write('w')", "w"),
    ("import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.title('t'); plt.show(); plt.close()\nprint(1)", "1"),
    ("import matplotlib; matplotlib.use('Agg'); import matplotlib.pyplot as plt, io\nb = io.BytesIO()\n"
     "plt.plot([1]); plt.savefig(b); b.getvalue()[1:4]", "b'PNG'"),
    ("import matplotlib.pyplot as plt; plt.plot([1]); plt.savefig('a.png'); plt.savefig('a.pdf')\n"
     "open('a.png', 'rb').read(4), open('a.pdf', 'rb').read(4)", "(b'\\x89PNG', b'%PDF')"),
    ("import matplotlib.pyplot as plt; plt.plot([1]); plt.savefig('a.svg'); open('a.svg').read(5)", "'<?xml'"),
])
def test_progress_bars_and_plots(code, expected):
    pytest.importorskip("tqdm" if "tqdm" in code else "matplotlib")
    py = sandbox.Interpreter(seconds=60)
    assert py.run(code) == (expected, None, False)
    py.close()


REFUSALS = {                                               # each is an error that says what the interpreter has not
    "glob": "open('a.csv', 'w').close(); import glob; print(glob.glob('*.csv'))",
    "recursive glob": "open('a.csv', 'w').close(); import glob; print(glob.glob('/**', recursive=True))",
    "glob of a path": "from pathlib import Path; Path('a.csv').write_text('x'); print(list(Path('.').glob('*.csv')))",
    "rglob": "from pathlib import Path; Path('a.csv').write_text('x'); print(list(Path.cwd().rglob('*')))",
    "iterdir": "from pathlib import Path; Path('a.csv').write_text('x'); print(list(Path().iterdir()))",
    "listdir": "open('a.csv', 'w').close(); import os; print(os.listdir())",
    "scandir": "open('a.csv', 'w').close(); import os; print([entry.name for entry in os.scandir('/')])",
    "walk": "open('a.csv', 'w').close(); import os; print(list(os.walk('.')))",
    "mkdir": "import os; os.mkdir('d'); os.rmdir('d')",
    "makedirs": "import os; os.makedirs('w/v', exist_ok=True); os.chdir('w'); print(os.getcwd())",
    "chdir": "import os; os.chdir('w')",
    "writes elsewhere": "import os; os.chdir('/tmp'); open('x', 'w')",
    "a file in a folder": "open('data/x.csv', 'w')",
    "a missing file": "open('data.csv')",
    "copy": "import shutil; open('a', 'w').close(); shutil.copy('a', 'b')",
    "move": "import shutil; open('a', 'w').close(); shutil.move('a', 'b')",
    "rmtree": "import shutil; shutil.rmtree('d')",
    "rename": "import os; open('a', 'w').close(); os.rename('a', 'b')",
    "removes what is not there": "import os; os.remove('a')",
    "rmdir": "import os; os.rmdir('d')",
    "touch": "from pathlib import Path; Path('a').touch()",
    "chmod": "import os; open('a', 'w').close(); os.chmod('a', 0o600)",
    "mkstemp": "import tempfile; tempfile.mkstemp()",
    "temporary file": "import tempfile; tempfile.NamedTemporaryFile('w')",
    "temporary folder": "import tempfile; tempfile.TemporaryDirectory()",
    "makes a file once": "open('a', 'x')",
    "makes what is there": "open('a', 'w').close(); open('a', 'x')",
    "removes what may be missing": "import pathlib; pathlib.Path('q').unlink(missing_ok=True)",
    "shortens a file": "f = open('a', 'w+'); f.write('abc'); f.truncate(1)",
    "an archive that grows": "import zipfile\nfor mode in 'wa':\n"
                             "    with zipfile.ZipFile('z', mode) as z: z.writestr(mode, mode)",
    "an array to a file descriptor": "import numpy as np; np.arange(3).tofile('a')",
    "a file descriptor": "open('a', 'w').fileno()",
    "os.open": "import os; open('a', 'w').close(); os.open('a', os.O_RDONLY)",
    "a database": "import sqlite3; sqlite3.connect('a.db')",
    "a shelf": "import shelve; shelve.open('s')",
    "requests": "import requests; requests.get('https://example.com')",
    "requests by number": "import requests; requests.get('http://1.1.1.1')",
    "urllib": "import urllib.request; urllib.request.urlopen('http://example.com')",
    "name service": "import socket; socket.getaddrinfo('example.com', 80)",
    "host name": "import socket; socket.gethostbyname('example.com')",
    "http.client": "import http.client; http.client.HTTPSConnection('example.com').request('GET', '/')",
    "asyncio stream": "import asyncio; asyncio.run(asyncio.open_connection('example.com', 80))",
    "subprocess": "import subprocess; subprocess.run(['ls'])",
    "os.system": "import os; os.system('ls')",
    "os.popen": "import os; os.popen('ls').read()",
    "pool of processes": "import multiprocessing; multiprocessing.Pool(2).map(abs, [1])",
    "pool of multiprocessing": "from multiprocessing.dummy import Pool; Pool(2).map(abs, [1])",
    "alarm": "import signal; signal.alarm(1)",
    "a thread below threading": "import _thread; _thread.start_new_thread(print, ())",
    "prints below Python": "import os; os.write(1, b'lost')",
}
THREAD_REFUSALS = {                                        # the same for threads
    "daemon": "import threading; threading.Thread(target=print, daemon=True).start()",
    "timer": "import threading; threading.Timer(0.1, print).start()",
    "worker of a queue": "import threading, queue\nq = queue.Queue()\ndef work():\n    while True: print(q.get())\n"
                         "threading.Thread(target=work).start()\nq.put(1)\nq.join()",
    "waits for a queue": "import queue; queue.Queue().get()",
    "waits for a simple queue": "import queue; queue.SimpleQueue().get()",
    "waits for an event": "import threading; threading.Event().wait()",
    "waits for a condition": "import threading\nc = threading.Condition()\nwith c: c.wait()",
    "waits for a future": "import concurrent.futures; concurrent.futures.Future().result()",
    "meets at a barrier": "import threading; threading.Barrier(2).wait()",
    "takes a semaphore": "import threading; threading.Semaphore(0).acquire()",
    "polls": "import threading, time\ndef poll():\n    while not done: time.sleep(0.01)\n"
             "done = False\nthreading.Thread(target=poll).start()\ndone = True",
}


@pytest.mark.parametrize("name", [*REFUSALS, *THREAD_REFUSALS])
def test_what_cannot_work_says_so(py, name):
    code = REFUSALS.get(name) or THREAD_REFUSALS[name]
    seen = py.run(code)
    hint = session.HINT if name in REFUSALS else session.THREADS_HINT
    assert seen.error and hint in seen.text, seen.text


@pytest.mark.parametrize("code, name", [
    ("import random; random.seed(1, 2, 3)", "Random.seed()"),
    ("import random; random.Random().seed(b=1)", "Random.seed()"),
    ("import threading; threading.Thread().join(1, 2)", "Thread.join()"),
    ("web_search()", "web_search()"),
    ("final_answer_print(1, 2)", "final_answer_print()"),
    ("open()", "open()"),
    ("from concurrent.futures import *; ThreadPoolExecutor(2, initializer=print)", "Pool.__init__()"),
])
def test_errors_name_what_the_program_called(py, code, name):
    text = py.run(code).text
    assert f"TypeError: {name}" in text and "<locals>" not in text and "Session" not in text


@pytest.mark.parametrize("end", ["exit()", "quit()", "import sys; sys.exit(2)", "import sys; sys.stdin.close()",
                                 "import sys; del sys.stdin"])
def test_nobody_answers(py, end):
    py.run(end)
    assert py.run("input('name? ')").text.endswith("(Nobody answers input() here.)")


@pytest.mark.parametrize("code", [
    "s = 'a\u2028b'\nx = 1\n1 / 0  # here\ny = 2", "x = 1\n\x0cy = 2\n1 / 0  # here\nz = 3",
    "s = '\x85\x1c'\r\nx = 1\r\n1 / 0  # here\r\ny = 2"])
def test_errors_quote_the_line_after_odd_line_ends(py, code):
    assert "line 3, in <module>\n    1 / 0  # here\n" in py.run(code).text


@pytest.mark.parametrize("code, hint", [
    ("from concurrent.futures import *\nwith ProcessPoolExecutor() as executor: executor.submit(time.sleep, 60)",
     session.THREADS_HINT),
    ("lock.acquire()", session.THREADS_HINT),
    ("while True:\n    try: n = int(input('n? ')); break\n    except: print('again')", session.INPUT_HINT),
])
def test_a_killed_step_says_what_it_may_have_waited_for(code, hint):
    py = sandbox.Interpreter(seconds=0.5)
    py.run("import time, _thread; lock = _thread.allocate_lock(); lock.acquire()")
    assert py.run(code).text.endswith(f"The variables are as before this step. {hint}")
    py.close()


def test_errors_quote_the_line(py):
    py.run("def f(x):\n    return 1 / x")
    seen = py.run("a = 1\nprint('before')\nf(0)  # here")
    assert seen.error and seen.answer is None
    assert seen.text.startswith("before\nTraceback") and seen.text.endswith("ZeroDivisionError: division by zero")
    assert 'File "<step 2>", line 3' in seen.text and "f(0)  # here" in seen.text and "return 1 / x" in seen.text
    library = py.run("import numpy as np\nnp.linalg.inv(np.zeros((2, 2)))").text
    assert "packages" not in library and str(ROOT) not in library and "Singular matrix" in library
    assert py.run("*range(3)").text.endswith("SyntaxError: can't use starred expression here")
    for code in "def f(:", "x = (", "return 1", "a\0b", "x = '\ud800'", "  x = 1":
        assert py.run(code).error
    assert py.run("import sys; sys.exit(3)").error and py.run("exit()").error and py.run("input()").error
    assert py.run("f(1)").text == "1.0"


def test_output_is_cut_in_the_middle(py):
    seen = py.run("print('begin'); print('x' * 50_000); print('end')").text
    assert seen.startswith("begin\nxxx") and seen.endswith("xxx\nend") and len(seen) < session.MAX_OUTPUT + 100
    cut = int(re.search(r"\[(\d+) characters cut\]", seen)[1])
    assert cut == len("begin\n" + "x" * 50_000 + "\nend\n") - session.MAX_OUTPUT
    exact = "y" * (session.MAX_OUTPUT - 1)
    assert py.run(f"print({exact!r})").text == exact
    assert "characters cut" in py.run("for i in range(30_000): print(i)").text
    assert "characters cut" in py.run("list(range(100_000))").text
    assert len(py.run("raise ValueError('z' * 10**6)").text) < session.MAX_OUTPUT + 100
    assert py.run("print(" + "1" * interpreter.MAX_CODE + ")").text.startswith("Error: the code is longer")


def test_answers(py):
    assert py.run("x = 3\nfinal_answer_print(f'{x} apples')") == ("3 apples", "3 apples", False)
    assert py.run("print('final_answer_print(1)', '{\"answer\": \"1\"}')").answer is None
    assert py.run("for i in range(3): final_answer_print(i)") == ("0\n1\n2", "2", False)
    assert py.run("final_answer_print('')").answer == ""
    assert py.run("final_answer_print(5)\n1/0").answer == "5"
    assert len(py.run("final_answer_print('a' * 10**6)").answer) == session.MAX_ANSWER
    assert py.run("final_answer_print(1); os = __import__('os'); os._exit(0)").answer is None
    py.run("final_answer_print = web_search = None")
    assert py.run("final_answer_print(6)").answer == "6"


def test_searches_are_values():
    asked = []
    py = sandbox.Interpreter(search=lambda query: asked.append(query) or f"Title: {query}\nSnippet: s")
    assert py.run("web_search('a')").text == "Title: a\nSnippet: s"
    assert py.run("r = web_search('b')").text == "None"
    assert py.run("r").text == "Title: b\nSnippet: s"
    assert py.run("web_search('c')\nweb_search('d')\nx = 1").text.count("Title") == 2
    assert py.run("[len(web_search(q)) for q in ['e', 'ff']]").text == "[19, 20]"
    assert py.run("print(web_search(5).upper())").text == "TITLE: 5\nSNIPPET: S"
    assert asked == ["a", "b", "c", "d", "e", "ff", "5"]
    assert py.log[3][1] == [("c", "Title: c\nSnippet: s"), ("d", "Title: d\nSnippet: s")]
    many = py.run("n = [web_search(str(i)) for i in range(200)]\nn[-1]")
    assert many.text == "Error: too many searches in one step." and len(asked) == 7 + interpreter.MAX_SEARCHES
    py.run("web_search('q' * 10**7)")
    assert len(asked[-1]) == session.MAX_ANSWER
    copy = py.fork()
    assert copy.run("r").text == "Title: b\nSnippet: s" and len(asked) == 8 + interpreter.MAX_SEARCHES
    py.close(), copy.close()


def test_failed_search_is_no_observation():
    calls = []

    def search(query):
        calls.append(query)
        if query == "bad":
            raise SearchFailed("quota")
        return "\ud800\0found" + "x" * 100_000

    py = sandbox.Interpreter(search)
    assert py.run("x = 1\nlen(web_search('good'))").text == str(interpreter.MAX_REPLY)
    for code in "x = 2\nweb_search('bad')", "try:\n    x = 3\n    web_search('bad')\nexcept BaseException: pass":
        with pytest.raises(SearchFailed):
            py.run(code)
    assert py.run("x").text == "1" and calls == ["good", "bad", "bad"] and len(py.log) == 2
    py.close()


# ---- state ----

def test_state_persists(py):
    steps = ["import math, sympy as sp; from collections import Counter; k = 3",
             "f = lambda x: x + k\ng = (i * i for i in range(10)); next(g); next(g)",
             "class A:\n    n = 0\n    def __init__(self): A.n += 1; self.me = self\na = A()",
             "def counter():\n    c = 0\n    def up():\n        nonlocal c\n        c += 1\n        return c\n"
             "    return up",
             "up = counter(); up()",
             "it = iter([1, 2, 3]); next(it)\nm = memoryview(b'abc')\nx = sp.Symbol('x')",
             "k = 10\nA(); up()"]
    for code in steps:
        assert not py.run(code).error
    seen = py.run("f(1), next(g), A.n, a.me is a, up(), next(it), bytes(m), "
                  "sp.diff(x**2, x), math.e, Counter('aa')")
    assert seen.text == "(11, 4, 2, True, 3, 2, b'abc', 2*x, 2.718281828459045, Counter({'a': 2}))"
    py.run("def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)\n1/0")
    assert py.run("fib(10)").text == "55"                  # what a failing step did before its error stays


RANDOM = ("import random, secrets, uuid, numpy as np\n"
          "print(random.random(), np.random.rand(), np.random.default_rng().normal(), secrets.token_hex(4), "
          "uuid.uuid4(), hash('a'), {'x', 'y', 'z'})")


def test_fork_is_an_independent_copy(py):
    py.run("xs = [1]; g = (i for i in range(9)); f = lambda: xs")
    py.run(RANDOM)
    copies = [py.fork() for _ in range(4)]
    assert [copy.run(f"xs.append({i}); f() + [next(g)]").text for i, copy in enumerate(copies)] == [
        f"[1, {i}, 0]" for i in range(4)]
    assert py.run("f() + [next(g)]").text == "[1, 0]"
    drawn = {one.run(RANDOM).text for one in [py.fork(), py, *copies]}
    assert len(drawn) == 1                                 # a copy goes on to draw what the original draws
    copies[0].run("import os; os._exit(1)")
    copies[1].close()
    assert py.run("1").text == "1" and copies[1].run("xs").text == "[1, 1]"
    [copy.close() for copy in copies]


def test_rewinding(py):
    states = []
    for code in "x = 1", "x += 1", "x = 'wrong'; y = 0", "z = x":
        states.append(py.fork())
        py.run(code)
    repaired = states[2]
    assert repaired.run("x += 5; x").text == "7" and "NameError" in repaired.run("y").text
    assert py.run("x, y, z").text == "('wrong', 0, 'wrong')"
    repaired.close()


def test_a_killed_step_leaves_the_state_as_it_was(py):
    py.run("x = [1]; g = (i for i in range(9)); next(g)")
    py.run("1/0")
    for bad in "x.append(2); next(g)\nwhile True: pass", "x.append(3); import os; os._exit(0)":
        seen = py.run(bad)
        assert seen.error and "as before this step" in seen.text
        assert py.run("x").text == "[1]"
    assert py.run("next(g)").text == "1"
    # a log that cannot be repeated: lost, said so, and the interpreter goes on
    py.run("import time, os\nif time.time() > t0 + 1: os._exit(1)".replace("t0", str(time.time())))
    time.sleep(1.1)
    assert "died" in py.run("os._exit(1)").text
    assert "all is lost" in py.run("2").text and py.run("3").text == "3" and py.run("x").error


@pytest.mark.parametrize("code", [
    "web_search(str(time.time()))",                        # another search
    "for i in range(1 + (time.time() > T)): web_search('x')",          # one more
    "for i in range(1 + (time.time() < T)): web_search('x')",          # one less
    "if time.time() < T: web_search('x')",
])
def test_a_replay_that_searches_otherwise_is_lost(code):
    asked = []
    py = sandbox.Interpreter(search=lambda query: asked.append(query) or "found")
    py.run("x = 1")
    seen = py.run("import time\n" + code.replace("T", str(time.time() + 0.5)))
    assert not seen.error and not py.lost
    time.sleep(0.6)
    searches = len(asked)
    copy = py.fork()
    seen = copy.run("x")
    assert seen.error and "all is lost" in seen.text and "other searches than before" in seen.text and copy.lost
    assert len(asked) == searches and copy.run("x").error and copy.run("5").text == "5"
    assert py.run("x").text == "1" and not py.lost
    py.close(), copy.close()


# ---- hostile and awkward programs: each must end in time, give nothing away, and leave a working interpreter ----

LOOPS = {
    "endless loop": "while True: pass",
    "swallows every exception": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "ignores signals": "import signal\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n"
                       "    except (OSError, ValueError): pass\nwhile True: pass",
    "a loop in C": "sum(range(10**12))",
    "a regular expression": "import re; re.match(r'(a+)+$', 'a' * 40 + 'b')",
    "a huge power": "x = 10 ** (10 ** 9)",
    "sleeps": "import time; time.sleep(1000)",
    "prints for ever": "while True: print('x' * 1000)",
    "waits for a message": "import select; select.select([], [], [])",
    "reads its own connection": "import os\nfor fd in range(3, 50):\n    try: os.read(fd, 1)\n"
                                "    except OSError: pass",
    "finalizer": "class A:\n    def __del__(self):\n        while True: pass\nA()",
    "repr": "class A:\n    def __repr__(self):\n        while True: pass\nA()",
    "error text": "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E",
    "dribbles": "import os, time\nwhile True:\n    for fd in range(3, 20):\n        try: os.write(fd, b' ')\n"
                "        except OSError: pass\n    time.sleep(0.2)",
}


@pytest.mark.parametrize("name", LOOPS)
def test_endless_programs_end(name):
    py = sandbox.Interpreter(seconds=0.5)
    py.run("x = 1")
    seen = py.run(LOOPS[name])                             # under load this takes until MAX_WAIT, 10 seconds
    assert seen.error and seen.text.startswith("Error: TimeoutError"), seen
    assert py.run("x").text == "1"
    py.close()


CRASHES = {                                                # each ends in an error or in the death of the session
    "os._exit": "import os; os._exit(0)",
    "segfault": "import ctypes; ctypes.string_at(0)",
    "abort": "import os; os.abort()",
    "memory at once": "x = bytearray(10**10)",
    "memory in pieces": "x = []\nwhile True: x.append('a' * 10**6 + str(len(x)))",
    "memory of numpy": "import numpy as np; np.ones(10**10)",
    "a gigabyte of output": "print('x' * 10**9)",
    "deep recursion": "def f(): f()\nf()",
    "deeper recursion": "import sys; sys.setrecursionlimit(10**9)\ndef f(): return [f()]\nf()",
    "recursion in C": "x = []\nfor _ in range(10**6): x = [x]\nrepr(x)",
    "nested source": "(" * 5000 + ")" * 5000,
    "huge integer": "print(10**10**5)",
    "closes everything": "import os; os.closerange(0, 300)",
    "breaks builtins": "import builtins\nfor n in list(vars(builtins)):\n"
                       "    if n != 'delattr': delattr(builtins, n)",
    "breaks json": "import json; json.dumps = json.loads = None",
    "no recursion allowed": "import sys; sys.setrecursionlimit(8)",
    "fork": "import os; os.fork()",
    "subprocess": "import subprocess; subprocess.run(['id'])",
    "exec": "import os; os.execv('/bin/true', ['true'])",
    "os.system": "import os; assert os.system('id') == 0",
    "multiprocessing": "import multiprocessing as m; p = m.Process(target=print); p.start()",
    "thread": "import _thread; _thread.start_new_thread(print, ())",
    "more file descriptors": "import os; x = [os.pipe() for _ in range(10**5)]",
    "new limits": "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))",
    "kill itself": "import os; os.kill(os.getpid(), 9)",
    "timer": "import signal; signal.setitimer(signal.ITIMER_REAL, 0.01)",
    "shared memory": "from multiprocessing.shared_memory import SharedMemory; SharedMemory(create=True, size=10)",
    "memory file": "import os; os.memfd_create('x')",
    "evil print": "class S(str):\n    def __getitem__(self, k): return 5\nprint(S('a')); print(b'', file=5)",
    "system exit": "raise SystemExit",
}


@pytest.mark.parametrize("name", CRASHES)
def test_crashes(py, name):
    py.run("keep = 1")
    crashed, zygote = py.session.pid, interpreter.ZYGOTE.process.pid
    seen = py.run(CRASHES[name])
    assert seen.error or name in ("breaks builtins", "breaks json", "no recursion allowed"), seen
    py.run("1")                                            # may find it dead; then it is started again
    assert py.run("keep").text == "1"

    def gone():
        return py.session.pid == crashed or crashed not in children(zygote)

    assert eventually(gone), pathlib.Path(f"/proc/{crashed}/status").read_text()
    assert not any(children(pid) for pid in children(zygote))


BREAKOUTS = {                                              # each must raise: what follows it prints the secret
    "reads a file": "open('{path}').read()",
    "os.open": "import os; os.open('{path}', os.O_RDONLY)",
    "opens a path only": "import os; fd = os.open('{path}', os.O_PATH); open(f'/proc/self/fd/{{fd}}').read()",
    "lists a folder": "import os; os.listdir('{dir}')",
    "the repository": "open('{repo}/env.py').read()",
    "the sandbox": "open('{repo}/sandbox/interpreter.py').read()",
    "imports the repository": "import env",
    "imports the sandbox": "import sandbox.zygote",
    "imports the package": "import sandbox",
    "imports what is beside the sandbox": "import zygote",
    "imports what the zygote imported": "import session",
    "imports the trainer's side": "import interpreter",
    "the repository on the path": "import sys; sys.path[:0] = ['{repo}', '{repo}/sandbox']; import zygote",
    "the session on the path": "import sys; sys.path[:0] = ['{repo}', '{repo}/sandbox']; import session",
    "passwords": "open('/etc/passwd').read()",
    "own environment": "import os; assert 'PLANTED_KEY' in os.environ",
    "environ in /proc": "open('/proc/{pid}/environ').read()",
    "environ of itself": "open('/proc/self/environ').read()",
    "command line": "open('/proc/{pid}/cmdline').read()",
    "memory in /proc": "open('/proc/{pid}/mem', 'rb')",
    "process_vm_readv": "import ctypes; b = ctypes.create_string_buffer(64)\n"
                        "assert ctypes.CDLL(None).process_vm_readv({pid}, b, 1, b, 1, 0) >= 0",
    "ptrace": "import ctypes; assert ctypes.CDLL(None).ptrace(16, {pid}, 0, 0) == 0",
    "signals": "import os; os.kill({pid}, 0)",
    "signals to all": "import os; os.kill(-1, 0)",
    "signals through a descriptor": "import os, fcntl; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, {pid})",
    "loopback": "import socket; socket.create_connection(('127.0.0.1', {port}), 1)",
    "datagram": "import socket; socket.socket(type=socket.SOCK_DGRAM)",
    "unix socket": "import socket; socket.socket(socket.AF_UNIX)",
    "connects a pair": "import socket; a, b = socket.socketpair(); a.connect('/run/x')",
    "sends to an address": "from socket import *; a, b = socketpair(type=SOCK_DGRAM); a.sendto(b'x', '/run/x')",
    "passes a descriptor": "import socket; a, b = socket.socketpair(); socket.send_fds(a, [b'x'], [0])",
    "urllib": "import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}')",
    "name service": "import socket; socket.getaddrinfo('localhost', 80)",
    "writes": "open('{dir}/new', 'w')",
    "appends": "open('{path}', 'a')",
    "truncates": "import os; os.truncate('{path}', 0)",
    "deletes": "import os; os.unlink('{path}')",
    "renames": "import os; os.rename('{path}', '{path}2')",
    "makes a folder": "import os; os.mkdir('{dir}/d')",
    "links": "import os; os.symlink('{path}', '/tmp/l')",
    "changes rights": "import os; os.chmod('{path}', 0o777)",
    "writes /dev/shm": "open('/dev/shm/x', 'w')",
    "changes a library": "import numpy; open(numpy.__file__, 'a')",
    "other descriptors": "import os\nlinks = []\nfor fd in range(3, 256):\n"
                         "    try: links.append(os.readlink(f'/proc/self/fd/{{fd}}'))\n    except OSError: pass\n"
                         "assert [link for link in links if 'socket' not in link] or len(links) > 1",
    "memory of the parent": "import gc\n"
                            "assert [o for o in gc.get_objects() if type(o) is dict and 'PLANTED_KEY' in o]",
    "io_uring": "import ctypes; assert ctypes.CDLL(None).syscall(425, 1, None) >= 0",
    "the scratch folder's parent": "open('/scratch/../' + '{path}').read()",
    "below the open of scratch files": "import _io; _io.open('{path}').read()",
    "a hidden file system": "import ctypes; assert ctypes.CDLL(None).open_by_handle_at(0, 0, 0) >= 0",
    "links in /proc": "import os; os.readlink('/proc/{pid}/cwd')",
    "the zygote's links": "import os; os.readlink('/proc/%d/root' % os.getppid())",
    "namespaces": "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "chroot": "import os; os.chroot('/')",
    "another user": "import os; os.setuid(12345)",
    "traceable again": "import ctypes; assert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0",
    "32-bit system calls": "import ctypes, mmap; m = mmap.mmap(-1, 4096, prot=7)\n"        # getpid by int 0x80
                           "m.write(bytes.fromhex('b814000000cd80c3'))\n"
                           "f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))\n"
                           "import platform; assert platform.machine() == 'x86_64' and f() > 0",
}


@pytest.mark.parametrize("name", BREAKOUTS)
def test_breakouts(py, secret, name):
    folder = sorted(os.listdir(secret["dir"]))
    seen = py.run(BREAKOUTS[name].format(**secret) + f"\nprint('{SECRET}')")
    assert seen.error and SECRET not in seen.text, seen
    assert sorted(os.listdir(secret["dir"])) == folder and pathlib.Path(secret["path"]).read_text() == SECRET
    assert py.run("1").text == "1"


# System calls by number on x86_64, with arguments that would do harm or work: each must return EPERM.
RAW_CALLS = """fork 57; vfork 58; clone 56 17 0 0 0 0; clone3 435 0 88; a thread 56 0x3d0f00 0 0 0 0;
execve 59 0 0 0; execveat 322 -100 0 0 0 0; socket AF_INET 41 2 1 0; AF_INET6 41 10 1 0; AF_UNIX 41 1 1 0;
AF_NETLINK 41 16 3 0;
AF_PACKET 41 17 3 0; AF_VSOCK 41 40 1 0; AF_ALG 41 38 5 0; connect 42 3 0 0; bind 49 3 0 0; listen 50 3 1;
accept 43 3 0 0;
sendmsg 46 3 0 0; recvmsg 47 3 0 0; sendmmsg 307 3 0 0 0; recvmmsg 299 3 0 0 0 0; memfd_create 319 0 0;
memfd_secret 447 0; userfaultfd 323 0; io_uring_setup 425 1 0; io_setup 206 1 0; ptrace 101 16 PID 0 0;
PTRACE_TRACEME 101 0 0 0 0; process_vm_readv 310 PID 0 0 0 0 0; process_vm_writev 311 PID 0 0 0 0 0;
process_madvise 440 0 0 0 0 0; kcmp 312 PID PID 0 0 0; pidfd_open 434 PID 0; pidfd_getfd 438 3 0 0;
pidfd_send_signal 424 3 0 0 0; kill 62 PID 0; kill a group 62 0 0; tkill 200 PID 0; tgkill 234 PID PID 0;
rt_sigqueueinfo 129 PID 0 0; traceable again 157 4 1 0 0 0; outlive the zygote 157 1 0 0 0 0; seccomp 317 1 0 0;
landlock 446 3 0; keyctl 250 0 0 0 0 0; bpf 321 0 0 0; perf_event_open 298 0 0 -1 -1 0; unshare 272 0x10000000;
setns 308 3 0; mount 165 0 0 0 0 0; chroot 161 0; pivot_root 155 0 0; open_tree 428 -100 0 1; fsopen 430 0 0;
open_by_handle_at 304 0 0 0; openat2 437 -100 0 0 24; creat 85 0 0x180; truncate 76 0 0; ftruncate 77 1 0;
fallocate 285 1 0 0 9; sendfile 40 1 0 0 9; splice 275 0 0 1 0 9 0; link 86 0 0; symlink 88 0 0; rename 82 0 0;
unlink 87 0; mkdir 83 0 0; mknod 133 0 0 0; chmod 90 0 0x1ff; chown 92 0 0 0; setxattr 188 0 0 0 0 0;
shmget 29 0 4096 0x380;
semget 64 0 1 0x380; msgget 68 0 0x380; mq_open 240 0 66 0 0; setrlimit 160 7 0; new limits 302 0 7 8 0;
setpriority 141 0 0 5; sched_setaffinity 203 0 8 0; setsid 112; setpgid 109 0 0; setuid 105 1; capset 126 0 0;
personality 135 -1; iopl 172 3; modify_ldt 154 0 0 0; timer_create 222 0 0 0; setitimer 38 0 0 0; alarm 37 1;
flock 73 0 2;
socketpair AF_INET 53 2 1 0 0; AF_NETLINK 53 16 3 0 0; AF_TIPC 53 30 1 0 0; AF_VSOCK 53 40 1 0 0;
a family beyond 32 bits 53 0x100000001 1 0 0; F_SETSIG 72 0 10 9; F_SETLEASE 72 0 1024 0; TIOCSTI 16 0 0x5412 0; ioctl beyond 32 bits 16 0 0x100005401 0;
FIOASYNC 16 0 0x5452 0; mlockall 151 3; mbind 237 0 0 0 0 0 0; move_pages 279 PID 0 0 0 0 0; x32 getpid 0x40000027;
x32 open 0x40000002 0 0; inotify_init1 294 0; fanotify_init 300 0 0; reboot 169 0 0 0 0; syslog 103 3 0 0"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86_64")
def test_raw_system_calls(py, secret):
    calls = {}
    for call in RAW_CALLS.replace("PID", str(secret["pid"])).split(";"):
        name, numbers = re.fullmatch(r"\s*(.*?)((?: -?(?:0x)?[0-9a-f]+)+)", call).groups()
        calls[name] = [int(n, 0) for n in numbers.split()]
    assert len(calls) > 100
    seen = py.run("import ctypes\nlibc, wrong = ctypes.CDLL(None, use_errno=True), []\n"
                  f"for name, numbers in {calls}.items():\n"
                  "    ctypes.set_errno(0)\n"
                  "    made = libc.syscall(*map(ctypes.c_long, numbers))\n"
                  "    if made != -1 or ctypes.get_errno() != 1: wrong.append(name)\nwrong")
    assert seen.text == "[]"


def find_socket(then):
    """Code that looks for the session's connection and its current key, and then does something with them."""
    return ("import sys, json, os\nf = sys._getframe()\n"
            "while not hasattr(f.f_locals.get('self'), 'sock'): f = f.f_back\n"
            "sock, key = f.f_locals['self'].sock, f.f_locals['self'].key\n" + then)


@pytest.mark.parametrize("then", [
    "sock.sendall(b'garbage\\n')",
    "sock.sendall(b'[1]\\n')",
    "sock.sendall(b'7\\n' * 1000)",
    "sock.sendall(b'[' * 100_000 + b'\\n')",
    "sock.sendall(b'x' * 10_000_000)",
    "sock.sendall(b'1' * 100_000 + b'\\n')",
    "sock.sendall(b'{\"key\": \"0\", \"text\": \"forged\"}\\n')",
    "sock.sendall(b'{\"answer\": \"forged\"}\\n' * 2)",
    "sock.sendall(json.dumps({'key': key, 'search': {}, 'text': 5}).encode() + b'\\n')",
    "sock.sendall(json.dumps({'key': key, 'text': {}, 'answer': [1], 'error': 'no'}).encode() + b'\\n')",
    "sock.sendall((json.dumps({'key': key, 'text': 'twice'}) + '\\n').encode() * 2)",
    "end = {'key': key, 'text': 'a', 'error': False, 'answer': 5}\nsock.sendall(json.dumps(end).encode() + b'\\n')",
    "end = {'key': key, 'text': ['a'], 'error': False, 'answer': None}\n"
    "sock.sendall(json.dumps(end).encode() + b'\\n')",
    "end = {'key': key, 'text': 'a', 'error': 1, 'answer': None}\nsock.sendall(json.dumps(end).encode() + b'\\n')",
    "end = {'key': key, 'text': 'a', 'error': False, 'answer': None, 'search': 'b'}\n"
    "sock.sendall(json.dumps(end).encode() + b'\\n')",
    "sock.close()",
    "sock.shutdown(2)",
    "os.dup2(1, sock.fileno())",
    "sock.setblocking(False)",
])
def test_forged_messages_break_only_their_session(py, then):
    py.run("x = 1")
    py.run(find_socket(then))
    later = [py.run(f"print({i})") for i in range(8)]      # may cost steps, cannot shift the answers
    assert later[-1].text == "7" or "died" in later[-1].text and then == "sock.setblocking(False)"
    assert all(o.text == str(i) or o.error for i, o in enumerate(later))
    assert all(o.answer is None for o in later)


@pytest.mark.parametrize("value", ["[]", "5", "{}", "True", "1.5", "[['a']]"])
@pytest.mark.parametrize("where", ["final_answer_print.__self__.answers.append({})",
                                   "final_answer_print.__self__.out.text = lambda: {}",
                                   "import sys; sys.stdout.text = lambda: {}"])
def test_what_a_session_sends_is_text(py, where, value):
    py.run("x = 1")
    seen = py.run(where.format(value))
    assert seen.error and "died" in seen.text and seen.answer is None
    assert py.run("x").text == "1"


@pytest.mark.parametrize("letter", ["\\0", "\\ud800", "\\U0001f600", "\\x1b", "\\\\"])
def test_what_a_session_sends_is_bounded(py, letter):
    seen = py.run(f"print('{letter}' * 10**5); final_answer_print('{letter}' * 10**5)")
    assert not seen.error
    assert len(seen.text) <= interpreter.MAX_REPLY and len(seen.answer) <= session.MAX_ANSWER


def test_nothing_goes_on_in_the_background():
    """A step that answers early and computes on is killed with the next, and does not come back with the log."""
    py = sandbox.Interpreter(seconds=0.5)
    early = "sock.sendall(json.dumps({'key': key, 'text': 'early', 'answer': None, 'error': False}).encode()"
    early += " + b'\\n')\nwhile True: pass"
    py.run(find_socket(early))
    assert "TimeoutError" in py.run("1").text and "all is lost" in py.run("2").text and py.run("3").text == "3"
    py.close()


def test_patched_names_do_not_reach_others(py):
    py.run("import builtins, sys, numpy as np\nprint = lambda *a: None\nbuiltins.len = lambda x: -1; np.pi = 3\n"
           "sys.modules['math'] = None; sys.stdout.write = None")
    assert py.run("import builtins as b; b.exec = b.compile = b.isinstance = b.str = None; 5").text == "5"
    py.run("__show__ = None; import sys; del sys.modules['__main__']; globals().clear()")
    assert py.run("final_answer_print(6)\n7") == ("6\n7", "6", False)
    other = sandbox.Interpreter()
    assert other.run("import numpy as np, math\nprint(len('abc'), np.pi > 3, math.tau > 6)").text == "3 True True"
    other.close()


# ---- nothing stays behind ----

TRAINER = """
import sys, threading, os; sys.path.insert(0, sys.argv[1])
from sandbox import Interpreter
a = Interpreter(seconds=60); a.run("x = 1")
b = Interpreter(seconds=60); threading.Thread(target=b.run, args=("while True: pass",), daemon=True).start()
c = a.fork(); c.run("x")
if sys.argv[2] == "fork" and not os.fork():
    import time; time.sleep(30)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["kill", "exit", "fork"])
def test_everything_dies_with_the_trainer(how):
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER, str(ROOT), how], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    assert trainer.stdout.readline() == "ready\n"
    assert eventually(lambda: len(children(trainer.pid)) >= 4)
    family = children(trainer.pid)
    if how == "exit":
        trainer.stdin.close()
    else:
        trainer.kill()
    trainer.wait(10)

    def no_orphans():
        alive = [p for p in family if os.path.exists(f"/proc/{p}")]
        return not any(b"zygote.py" in pathlib.Path(f"/proc/{p}/cmdline").read_bytes() for p in alive)

    assert eventually(no_orphans)
    for pid in family:                                     # the trainer's own fork, which sleeps
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def test_closing_and_collecting_end_processes():
    sandbox.Interpreter().run("1")
    base = children(os.getpid())
    py = [sandbox.Interpreter() for _ in range(3)]
    [p.run("1") for p in py]
    assert len(children(os.getpid()) - base) >= 2           # the first of them was waiting to be needed
    py[0].close(), py[0].close()
    assert py[0].run("5").text == "5"                      # a closed interpreter starts again where it was
    del py
    assert eventually(lambda: len(children(os.getpid())) <= len(base) + 1)  # one waits to be needed


def test_the_zygote_restarts():
    py = sandbox.Interpreter()
    py.run("x = 1")
    interpreter.ZYGOTE.process.kill()
    interpreter.ZYGOTE.process.wait()
    assert "died" in py.run("x").text and py.run("x").text == "1"
    py.close()


def test_a_forked_trainer_has_its_own_zygote():
    py = sandbox.Interpreter()
    py.run("x = 1")
    pid = os.fork()
    if not pid:
        mine = sandbox.Interpreter()
        code = 0 if mine.run("7").text == "7" else 1
        mine.close()
        interpreter.ZYGOTE.stop()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 and py.run("x").text == "1"
    py.close()


def test_a_forked_trainer_may_go_on_with_an_interpreter():
    py = sandbox.Interpreter()
    py.run("xs = [0]")
    read, write = os.pipe()
    if not os.fork():
        interpreter.ZYGOTE.preload = False                            # starts faster
        os.write(write, py.run("xs.append(1); xs").text.encode())
        interpreter.ZYGOTE.stop()
        os._exit(0)
    assert py.run("xs.append(2); xs").text == "[0, 2]" and os.read(read, 99) == b"[0, 1]"
    os.wait(), os.close(read), os.close(write)
    assert py.run("xs").text == "[0, 2]"
    py.close()


def state_of(pid):
    """One letter: R runs, S sleeps, T is stopped."""
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_a_session_is_stopped_between_steps():
    states = []
    py = sandbox.Interpreter(search=lambda query: states.append(eventually(stopped)) or "found")

    def stopped():
        return state_of(py.session.pid) == "T"

    assert py.run("x = web_search('x')\nlen(x)").text == "5" and states == [True]
    assert eventually(stopped) and py.run("x + '!'").text == "'found!'"
    py.close()


def test_a_session_stopped_in_a_step():
    py = sandbox.Interpreter(seconds=0.5)
    py.run("x = 1")
    timer = threading.Timer(0.1, os.kill, (py.session.pid, signal.SIGSTOP))
    timer.start()
    assert "TimeoutError" in py.run("while True: pass").text and py.run("x").text == "1"
    timer.join(), py.close()


def test_a_waiting_session_that_died_is_replaced():
    interpreter.ZYGOTE.stop()                              # no sessions of earlier tests
    py = sandbox.Interpreter()
    py.run("1")
    zygote = interpreter.ZYGOTE.process.pid
    assert eventually(lambda: len(children(zygote)) == 2)
    waiting, = children(zygote) - {py.session.pid}
    os.kill(waiting, signal.SIGKILL)
    assert eventually(lambda: children(zygote) == {py.session.pid})
    other = sandbox.Interpreter()
    assert other.run("6 * 7") == ("42", None, False) and interpreter.ZYGOTE.process.pid == zygote
    py.close(), other.close()


def test_sleeping_keeps_nobody_waiting():
    cores = len(os.sched_getaffinity(0))
    sleepers = [sandbox.Interpreter(seconds=60) for _ in range(3 * cores)]
    with ThreadPoolExecutor(len(sleepers)) as pool:
        [py.run("import time") for py in sleepers]
        asleep = [pool.submit(py.run, "time.sleep(5)") for py in sleepers]
        assert eventually(lambda: all(state_of(py.session.pid) == "S" for py in sleepers))
        other = sandbox.Interpreter()
        assert other.run("1").text == "1" and not any(future.done() for future in asleep)
    assert not any(future.result().error for future in asleep)
    [py.close() for py in [other, *sleepers]]


class Unread(interpreter.Session):
    """A session that is no process: nothing to stop, no waiting for a core."""
    def signal(self, number):
        pass

    def times(self):
        return 0.0, 0.0


def test_leaving_a_message_unread_counts():
    """Else a program that reads each message late, and searches on, would never end."""
    ours, theirs = socket.socketpair()
    unread = Unread(ours, os.getpid())
    long = "x" * 10**6                                     # does not fit into the connection

    def read_late():
        time.sleep(0.6)                                    # it begins a little before `ask` does
        with theirs.makefile("rb") as file:
            file.readline()
        theirs.sendall(b"{}\n")

    reader = threading.Thread(target=read_late)
    reader.start()
    line, left = unread.ask(long, 60)
    assert line == b"{}\n" and left <= 59.5
    reader.join(), theirs.close(), unread.sock.close(), os.close(unread.pidfd)


def test_sessions_share_no_open_file():
    one, other = sandbox.Interpreter(), sandbox.Interpreter()
    assert not one.run("import fcntl, os\nfor fd in range(3): fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)").error
    assert other.run("import fcntl, os\n{fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND for fd in range(3)}").text == "{0}"
    one.close(), other.close()


def test_the_zygote_stops_while_a_fork_of_the_trainer_lives():
    sandbox.Interpreter().run("1")
    pid = os.fork()
    if not pid:
        signal.pause()
    stopping = threading.Thread(target=interpreter.ZYGOTE.stop, daemon=True)
    stopping.start()
    stopping.join(60)
    os.kill(pid, signal.SIGKILL), os.waitpid(pid, 0)
    assert not stopping.is_alive() and sandbox.Interpreter().run("1").text == "1"


def test_sleeping_counts():
    py = sandbox.Interpreter(seconds=0.5)
    assert "TimeoutError" in py.run("import time; time.sleep(30)").text
    py.close()


SURROUNDINGS = """
import sys, os, resource, signal; sys.path.insert(0, sys.argv[1])
{before}
import sandbox
sandbox.set_sandbox("auto", preload=False)
file = open(sys.argv[2], "w")
crowd = [sandbox.Interpreter(seconds=20) for _ in range({number})]
code = "import zoneinfo, lzma; open('f', 'w').write('1'); print(open('f').read(), lzma.__name__)"
seen = [py.run(code).text for py in crowd]
file.write("\\n".join(seen))
"""


@pytest.mark.parametrize("before, number", [
    ("os.closerange(0, 3)", 2),
    ("signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.umask(0o777); os.environ['PYTHONPATH'] = '/'", 2),
    ("resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30))", 30),
], ids=["no standard streams", "signals, umask, PYTHONPATH", "few file descriptors"])
def test_awkward_surroundings(tmp_path, before, number):
    out = tmp_path / "out"
    out.touch()
    code = SURROUNDINGS.format(before=before, number=number)
    subprocess.run([sys.executable, "-c", code, str(ROOT), str(out)], timeout=60, cwd="/")
    seen = out.read_text().split("\n")
    assert seen[0] == "1 lzma" and len(seen) == number
    assert seen[-1] == seen[0] or number == 30 and "could not start ([Errno 24] Too many open files)" in seen[-1]


def test_many_threads():
    def trajectory(i):
        py = sandbox.Interpreter(search=lambda q: q * 2)
        py.run(f"x = {i}")
        for k in range(4):
            py.run("x += len(web_search('ab'))" if k % 2 else "x += 1")
        copy = py.fork()
        texts = copy.run("x += 1\nx").text, py.run("x").text
        py.close(), copy.close()
        return texts
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(trajectory, range(64)))
    assert results == [(str(i + 11), str(i + 10)) for i in range(64)]


def test_a_crowd():
    """256 interpreters live at once within 4 GiB (proportional set size: shared pages counted once)."""
    crowd = [sandbox.Interpreter() for _ in range(256)]
    with ThreadPoolExecutor(8) as pool:
        seen = set(pool.map(lambda p: p.run("import sympy\nsympy.factor(sympy.Symbol('x')**2 - 1)").text, crowd))
    assert seen == {"(x - 1)*(x + 1)"}
    try:
        maps = [pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in children(os.getpid())]
        assert sum(int(re.search(r"^Pss:\s+(\d+) kB", text, re.M)[1]) for text in maps) < 4 << 20
    except PermissionError:
        pytest.skip("not allowed to read the sessions' memory maps")
    finally:
        [p.close() for p in crowd]


# ---- layers ----

PROBE = """
import sys; sys.path.insert(0, sys.argv[1])
from sandbox import Interpreter, set_sandbox
set_sandbox(sys.argv[2])
py = Interpreter(seconds=5)
for code in ("print(open(%r).read())" % sys.argv[3], "import socket; socket.socket(); print('socket')",
             "import sympy; sympy.sqrt(8)", "import os; print(os.environ.get('PLANTED_KEY'))"):
    print(py.run(code).text.splitlines()[-1])
py.close()
"""


def probe(folder, mode, secret, python=sys.executable, **options):
    return subprocess.run([python, "-c", PROBE, str(folder), mode, secret["path"]], capture_output=True,
                          text=True, timeout=60, **options)


def copy_of_sandbox(folder):
    """The package alone: it needs nothing of the project."""
    shutil.copytree(ROOT / "sandbox", pathlib.Path(folder) / "sandbox",
                    ignore=shutil.ignore_patterns("__pycache__"))


def without(tmp_path, *replacements):
    """A copy of the sandbox that makes system calls with numbers that do not exist."""
    copy_of_sandbox(tmp_path)
    source = (ROOT / "sandbox" / "zygote.py").read_text()
    for old, new in replacements:
        assert source.count(old) == 1
        source = source.replace(old, new)
    (tmp_path / "sandbox" / "zygote.py").write_text(source)
    return tmp_path


NO_LANDLOCK, NO_SECCOMP = ("call(libc, 444, None", "call(libc, 9444, None"), ("prctl(22, 2", "prctl(9922, 2")


def test_all_layers(secret):
    done = probe(ROOT, "strict", secret)
    if done.returncode:
        pytest.skip("a layer is missing here: " + done.stderr)
    assert done.stderr == "" and SECRET not in done.stdout
    assert done.stdout.splitlines()[2:] == ["2*sqrt(2)", "None"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else; the other tests ran as a user")
def test_ordinary_user(secret):
    packages = os.pathsep.join(path for path in sys.path if path.endswith("-packages"))
    for python in sys.executable, f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}":
        with tempfile.TemporaryDirectory() as folder:
            copy_of_sandbox(folder)
            os.chmod(folder, 0o755)
            try:
                done = probe(folder, "auto", secret, python, user=65534, group=65534, extra_groups=[], cwd="/",
                             env={"PYTHONPATH": packages})
            except (PermissionError, FileNotFoundError):
                continue
        assert done.returncode == 0 and SECRET not in done.stdout and "\nsocket" not in done.stdout, done
        return
    pytest.skip("no Python that other users can read")


def test_without_landlock(secret, tmp_path):
    folder = without(tmp_path, NO_LANDLOCK)
    done = probe(folder, "auto", secret)
    assert "no Landlock" in done.stderr and "seccomp" not in done.stderr and done.stderr.count("\n") == 1
    assert SECRET not in done.stdout and "\nsocket\n" not in done.stdout and "2*sqrt(2)" in done.stdout
    refused = probe(folder, "strict", secret)
    assert refused.returncode and not refused.stdout and "SandboxError: --sandbox strict" in refused.stderr


def test_without_seccomp(secret, tmp_path):
    folder = without(tmp_path, NO_SECCOMP)
    for mode in "auto", "strict":                          # the network and signals would be open
        refused = probe(folder, mode, secret)
        assert refused.returncode and not refused.stdout and "Landlock" not in refused.stderr
        assert f"SandboxError: --sandbox {mode}" in refused.stderr and "no seccomp" in refused.stderr
        assert "--sandbox without-seccomp accepts that" in refused.stderr
    done = probe(folder, "without-seccomp", secret)
    assert "no seccomp" in done.stderr and "Landlock" not in done.stderr and done.stderr.count("\n") == 1
    assert SECRET not in done.stdout and "\nsocket\n" in done.stdout


@pytest.mark.parametrize("mode", ["auto", "strict", "without-seccomp"])
def test_without_both(secret, tmp_path, mode):
    refused = probe(without(tmp_path, NO_LANDLOCK, NO_SECCOMP), mode, secret)
    assert refused.returncode and not refused.stdout and "files are not protected" in refused.stderr


def test_a_missing_layer_ends_a_script_in_one_sentence(capsys):
    def main(args):
        raise sandbox.SandboxError("--sandbox auto cannot start: no seccomp")

    with pytest.raises(SystemExit) as ended:
        cli(main, None)
    assert ended.value.code == 2 and capsys.readouterr().err == "error: --sandbox auto cannot start: no seccomp\n"


def test_sandbox_off(secret):
    done = probe(ROOT, "off", secret)
    assert "--sandbox off: model code can do whatever this user can" in done.stderr
    assert SECRET in done.stdout and "2*sqrt(2)" in done.stdout
    with pytest.raises(ValueError):
        sandbox.set_sandbox("yes")


# ---- real code ----

def recorded():
    for path in sorted(ROOT.glob("../shared/data/score_release/*_trajectories.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield [(s["code"], s["observation"].removeprefix("Retrieved from cache.\n").strip())
                   for s in json.loads(line)["steps"] if s["code"].strip()]


def test_recorded_trajectories_replay():
    """The steps that the authors recorded: 511 of 524 observations come out exactly, trailing newlines apart.

    The others: 8 are errors, of which the release shows the message and we the line, too; in 4 steps two bare
    web_search(...) calls follow each other, of which the release made the first only; 1 imports scipy, if that
    is not installed. Searches are answered with the recorded observation.
    """
    if not list(recorded()):
        pytest.skip("the authors' trajectories are not here (../shared/data/score_release)")
    def replay(steps):
        """-> for each step "same" or the class of its difference."""
        reply = None
        py = sandbox.Interpreter(search=lambda query: reply, seconds=30)
        classes = []
        for code, reply in steps:
            seen = py.run(code)
            if seen.text.strip() == reply:
                classes.append("same")
            elif reply.startswith("Error: "):
                assert seen.error and reply.split(": ", 1)[1] in seen.text
                classes.append("error")
            elif "ModuleNotFoundError" in seen.text:
                classes.append("module")
            else:
                classes.append("two searches" if code.count("web_search(") == 2 else "other")
        py.close()
        return classes

    with ThreadPoolExecutor(4) as pool:
        counts = collections.Counter(c for classes in pool.map(replay, recorded()) for c in classes)
    print(f"{counts['same']} of {counts.total()} observations reproduced exactly: {dict(counts)}")
    assert counts["other"] == 0 and counts["same"] >= 0.97 * counts.total()


# ---- search ----

class Serper(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["q"]
        self.server.asked.append((query, self.headers.get("X-API-KEY")))
        status, body = self.server.replies.pop(0) if self.server.replies else (200, json.dumps({"organic": [
            {"title": query, "snippet": "one"}, {"title": "second", "snippet": "two"},
            {"title": "bare", "snippet": None}]}))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def serper(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Serper)
    server.asked, server.replies = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}/search"
    monkeypatch.setenv("SEARCH_API_KEY", "abc")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    yield server
    server.shutdown()
    server.server_close()


def test_http_search(serper):
    search = make_search("http:" + serper.url)
    assert search("q").split("\n") == ["Page: 0", "Title: q", "Snippet: one", "Page: 1", "Title: second",
                                       "Snippet: two", "Page: 2", "Title: bare", "Snippet: "]
    assert serper.asked == [("q", "abc")]
    serper.replies += [(500, ""), (429, ""), (200, '{"organic": []}')]
    assert make_search(serper.url)("q") == "No results found." and len(serper.asked) == 4


@pytest.mark.parametrize("replies, requests", [
    ([(402, "no credits")], 1), ([(403, "forbidden")], 1), ([(400, "Not enough credits")], 1),
    ([(429, "slow")] * 20, 12),
    ([(503, "")] * 20, 12), ([(200, "<html>")], 1), ([(200, '{"error": 1}')], 1), ([(200, "[]")], 1)])
def test_http_search_fails_for_good(serper, replies, requests):
    serper.replies += replies
    py = sandbox.Interpreter(make_search(serper.url))
    with pytest.raises(SearchFailed, match=re.escape(serper.url)):
        py.run("try:\n    web_search('q')\nexcept BaseException: pass")
    assert len(serper.asked) == requests
    py.close()


def test_search_without_a_service(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(SearchFailed, match="ConnectionError"):
        make_search("http://127.0.0.1:9/")("q")
    assert make_search(None) is None and make_search("none") is None
    with pytest.raises(ValueError):
        make_search("bing")


def test_cache_is_shared_and_keeps_no_failures(serper, tmp_path):
    path = str(tmp_path / "cache.sqlite")
    serper.replies.append((402, ""))
    with pytest.raises(SearchFailed):
        make_search(serper.url, path)("q")
    first = make_search(serper.url, path)("q")
    code = ("import sys; sys.path.insert(0, sys.argv[1]); from plumbing.search import make_search; "
            "print(make_search(*sys.argv[2:])('q'))")
    command = [sys.executable, "-c", code, str(ROOT), serper.url, path]
    other = subprocess.run(command, capture_output=True, text=True)
    assert other.stdout.strip() == first.strip() and len(serper.asked) == 2
    search = make_search(serper.url, path)
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(search, [str(i % 10) for i in range(200)]))
    assert texts[3].startswith("Page: 0\nTitle: 3\n") and texts == texts[:10] * 20


def test_a_cache_that_cannot_be_used(serper, tmp_path):
    with pytest.raises(SearchFailed, match="cache"):
        make_search(serper.url, str(tmp_path / "missing" / "cache.sqlite"))
    search = make_search(serper.url, str(tmp_path / "cache.sqlite"))
    (tmp_path / "cache.sqlite").write_bytes(b"no database" * 1000)
    py = sandbox.Interpreter(search)
    with pytest.raises(SearchFailed, match="cache"):
        py.run("web_search('q')")
    py.close()


def test_local_search(tmp_path):
    pytest.importorskip("bm25s")
    rng = random.Random(0)
    words = ["river", "tree", "stone", "cloud"]
    corpus = [{"title": f"Page {i}", "text": " ".join(rng.choices(words, k=20))} for i in range(50)]
    corpus.append({"title": "Ada Lovelace", "text": "wrote the first program for the analytical engine. " * 40})
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(map(json.dumps, corpus)) + "\n")
    search = make_search(f"local:{path}")
    best = search("Who wrote the first program?")
    assert best.startswith("Page: 0\nTitle: Ada Lovelace\nSnippet: wrote") and len(best) < 1000
    assert search("river").count("Title:") == 10 and search("xylophone qqq") == "No results found." and search("")
    cache = str(tmp_path / "cache.sqlite")
    assert "Ada" in make_search(f"local:{path}", cache)("Lovelace")
    path.write_text("")
    with pytest.raises(SearchFailed, match="corpus.jsonl is empty"):
        make_search(f"local:{path}")
    path.write_text('{"title": "a", "text": "another Lovelace"}\n')
    os.utime(path, (0, 0))
    assert "another" in make_search(f"local:{path}", cache)("Lovelace")  # not the old one
    path.write_text('{"title": "a", "text": "b"}\n{"title": "a"}\n')
    with pytest.raises(SearchFailed, match="corpus.jsonl, line 2"):
        make_search(f"local:{path}")
