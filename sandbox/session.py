"""A session: the process that runs model code, one `Interpreter`'s steps and nothing else.

The zygote imports this file, and every session is a fork of the zygote. What the kernel refuses stays refused
here. Two things that honest code needs work without any right: open() keeps files in memory, and threads run
one after the other. What needs more than that fails with an error that says so.
"""
import ast
import builtins
import concurrent.futures.thread
import ctypes
import functools
import io
import json
import linecache
import logging
import os
import random
import re
import resource
import signal
import socket
import sys
import threading
import time
import tokenize
import traceback
import types
from collections.abc import Callable, Container
from contextlib import suppress
from typing import Any

MAX_OUTPUT = 10_000      # characters of an observation or a search reply; the middle of a longer one is cut
HALF = MAX_OUTPUT // 2
MAX_ANSWER = 2_000       # characters of a final answer or a search query
CPU_SECONDS = 600        # of a session in all; `Interpreter(seconds=)` is per step
FOLDER = "/"             # the current folder of model code
LINUX = sys.platform == "linux"

HINT = ("This interpreter has no network, no processes and no timers. Of files, open() can write, append to "
        "and read those in the current folder, os.remove() can remove them; nothing else works.")
THREADS_HINT = "Threads run one after the other here, each to its end at its start()."
INPUT_HINT = "Nobody answers input() here."
DO_WITHOUT_THREADS = ("tqdm", "matplotlib", "rich")        # libraries whose daemon threads need not run

AnyPath = str | bytes | int | os.PathLike
FILES: dict[str, bytearray] = {}                           # absolute path: content
REAL_OPEN = io.open


# ---- what a step printed ----

class Output(io.TextIOBase):
    """Standard output: keeps the first and the last characters and counts those between."""
    encoding = "utf-8"
    head = ""                # the first HALF characters
    tail = ""                # the last of those after them
    total = 0                # characters written

    def reconfigure(self, **options: Any) -> None:
        """Programs call this on sys.stdout; there is nothing to change."""

    def write(self, text: str) -> int:
        room = HALF - len(self.head)
        self.head += text[:room]
        rest = text[room:]
        self.tail = (self.tail + rest[-HALF:])[-HALF:]
        self.total += len(text)
        return len(text)

    def text(self) -> str:
        cut = self.total - len(self.head) - len(self.tail)
        if cut == 0:
            return self.head + self.tail
        return f"{self.head}\n... [{cut} characters cut] ...\n{self.tail}"


# ---- files in memory ----

class File(io.RawIOBase):
    """An open file: its content, and the place in it where the next byte is read or written."""

    def __init__(self, content: bytearray, name: AnyPath, mode: str) -> None:
        self.content = content
        self.name = name
        self.mode = mode
        self.place = len(content) if "a" in mode else 0

    def readable(self) -> bool:
        return True                                        # what the mode forbids, the buffer refuses

    writable = seekable = readable

    def seek(self, offset: int, whence: int = 0) -> int:
        starts = [0, self.place, len(self.content)]
        self.place = starts[whence] + offset
        return self.place

    def readinto(self, buffer: memoryview) -> int:
        data = self.content[self.place:self.place + len(buffer)]
        buffer[:len(data)] = data
        self.place += len(data)
        return len(data)

    def write(self, data: memoryview) -> int:
        if "a" in self.mode:
            self.place = len(self.content)
        self.content.extend(bytes(max(0, self.place - len(self.content))))       # what was skipped is zero
        self.content[self.place:self.place + len(data)] = data
        self.place += len(data)
        return len(data)


def in_folder(path: AnyPath | None) -> str | None:
    """The absolute path of FOLDER or of what is in it; None for other paths and file descriptors."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        return None
    full = os.path.abspath(os.fsdecode(path))
    return full if os.path.dirname(full) == FOLDER else None


def open_file(file: AnyPath, mode: str = "r", buffering: int = -1, encoding: str | None = None,
              errors: str | None = None, newline: str | None = None, *others: Any, **options: Any) -> Any:
    """open() for the files in memory. Everything else goes to the real open(), and the kernel decides."""
    name = in_folder(file)
    known = name in FILES
    free = name is not None and not os.path.lexists(name)
    kind = re.sub("[tb+]", "", str(mode))
    possible = {"r": known, "w": known or free, "a": known or free}
    if others or options or not buffering or ("b" in mode and encoding) or not possible.get(kind):
        return REAL_OPEN(file, mode, buffering, encoding, errors, newline, *others, **options)
    content = FILES.setdefault(name, bytearray())
    if kind == "w":
        content.clear()
    raw = File(content, file, mode)
    buffers = {"r": io.BufferedReader, "w": io.BufferedWriter, "a": io.BufferedWriter}
    buffered = io.BufferedRandom(raw) if "+" in mode else buffers[kind](raw)
    if "b" in mode:
        return buffered
    return io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline, buffering == 1)


def stat_file(name: str) -> os.stat_result:
    number = hash(name) % (1 << 32)                        # tells files apart, and is the same in a replay
    now = int(time.time())                                 # when it was written is not kept
    return os.stat_result((0o100644, number, 0, 1, 0, 0, len(FILES[name]), now, now, now))


def divert(function: str, paths: Container[str], instead: Callable[[str], Any]) -> None:
    """Have a function of os do something else for these paths."""
    original = getattr(os, function)

    def diverted(path: AnyPath = ".", *args: Any, **options: Any) -> Any:
        name = in_folder(path)
        if name in paths:
            return instead(name)
        return original(path, *args, **options)

    replace(os, function, diverted)


def replace(owner: Any, name: str, function: Callable) -> None:
    """Put a function in the place of another, under its name."""
    setattr(owner, name, functools.wraps(getattr(owner, name))(function))


def refuse(*args: Any, **options: Any) -> None:
    """Not with an OSError, which glob and os.walk would swallow to find nothing."""
    raise NotImplementedError(HINT)


# ---- threads in turn ----

class Pool(concurrent.futures.Executor):
    """A pool that does its work at once and in its order."""

    def __init__(self, max_workers: int | None = None, thread_name_prefix: str = "") -> None:
        """What else a pool may take, as an initializer, is a TypeError."""

    def submit(self, function: Callable, /, *args: Any, **kwargs: Any) -> concurrent.futures.Future:
        future = concurrent.futures.Future()
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:                     # any error of model code is the future's
            future.set_exception(error)
        return future


def start_now(thread: threading.Thread) -> None:
    """Thread.start: the whole run of the thread."""
    if thread.daemon or isinstance(thread, threading.Timer):
        module = sys._getframe(1).f_globals.get("__name__", "")
        if module.split(".")[0] not in DO_WITHOUT_THREADS:
            raise RuntimeError(f"daemon threads and timers cannot run. {THREADS_HINT}")
        return
    number = threading.get_ident()
    starter = threading.current_thread()
    threading._active[number] = thread                     # what current_thread() is in the run
    error = Pool().submit(thread.run).exception()
    threading._active[number] = starter
    if error is not None and not isinstance(error, SystemExit):
        print(f"Exception in thread {thread.name}:\n{describe(error)}", file=sys.stderr)


def join_now(thread: threading.Thread, timeout: float | None = None) -> None:
    """Thread.join: a thread has ended when its start() returns."""


def wait_now(condition: threading.Condition, timeout: float | None = None) -> bool:
    """Condition.wait, with which queues, events and futures wait: nobody is there who could end it."""
    if timeout is None:
        raise RuntimeError(f"this would wait for ever. {THREADS_HINT}")
    time.sleep(max(timeout, 0))
    return False


def adapt_libraries() -> None:
    """Put all this in place, in the zygote: what model code meets is the same in every replay."""
    divert("stat", FILES, stat_file)
    divert("lstat", FILES, stat_file)
    divert("access", FILES, bool)
    divert("remove", FILES, FILES.__delitem__)
    divert("unlink", FILES, FILES.__delitem__)
    divert("listdir", {FOLDER}, refuse)
    divert("scandir", {FOLDER}, refuse)
    for owner, name, function in [
            (builtins, "open", open_file), (io, "open", open_file), (tokenize, "_builtin_open", open_file),
            (os, "system", refuse), (signal, "alarm", refuse), (socket, "getaddrinfo", refuse),
            (threading.Thread, "start", start_now), (threading.Thread, "join", join_now),
            (threading.Condition, "wait", wait_now)]:
        replace(owner, name, function)
    concurrent.futures.thread.ThreadPoolExecutor = Pool
    concurrent.futures.ThreadPoolExecutor = Pool
    concurrent.futures.ProcessPoolExecutor = Pool
    logging.getLogger("matplotlib").setLevel("ERROR")      # no warning that it cannot keep its list of fonts


# ---- a step ----

def execute(code: str, name: str, scope: dict[str, Any]) -> None:
    """Run a step. Its last expression is shown, as in a notebook, and every bare web_search(...)."""
    linecache.cache[name] = (len(code), None, io.StringIO(code).readlines(), name)   # tracebacks quote it
    tree = compile(code, name, "exec", ast.PyCF_ONLY_AST)
    for node in tree.body:
        if not isinstance(node, ast.Expr):
            continue
        searches = isinstance(node.value, ast.Call) and getattr(node.value.func, "id", None) == "web_search"
        if searches or node is tree.body[-1]:              # `expression` becomes `<show>(expression)`
            show = ast.Call(ast.Name("<show>", ast.Load()), [], [ast.keyword("value", node.value)])
            node.value = ast.copy_location(show, node.value)
    exec(compile(ast.fix_missing_locations(tree), name, "exec"), scope)


def describe(error: BaseException) -> str:
    """A traceback: the innermost six lines of model code, without library code; a hint if a limit was met."""
    report = traceback.TracebackException(type(error), error, error.__traceback__, limit=-100)
    report.stack[:] = [frame for frame in report.stack if frame.filename.startswith("<step ")][-6:]
    text = "".join(report.format(chain=False))
    if isinstance(error, EOFError):
        text += f"({INPUT_HINT})\n"
    refused = "start new thread" in text or "unable to open" in text       # by _thread, by sqlite3
    for _ in range(20):                                    # libraries wrap errors of the system in their own
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            refused = True
        error = getattr(error, "__cause__", None) or getattr(error, "__context__", None)
    if refused:
        text += f"({HINT})\n"
    return text


# ---- the session ----

class Session:
    """Runs the steps of one `Interpreter`, with a JSON line each way.

    Model code can reach all of this. What it forges hurts only its own session: the trainer trusts no line.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.lines = sock.makefile("rb")
        self.out = Output()
        self.main = types.ModuleType("__main__")
        # A copy of the builtins, so that model code that patches them does not patch them for this file.
        self.builtins = types.ModuleType("builtins")
        sys.modules["builtins"] = self.builtins
        vars(self.builtins).update(vars(builtins))
        self.memory = 0                                    # bytes
        self.key = ""                                      # the trainer's, of the step that it sent last
        self.answers: list[str] = []                       # final answers of the step
        self.found: set[str] = set()                       # all search replies

    def send(self, message: dict[str, Any]) -> None:
        self.sock.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> Any:
        return json.loads(self.lines.readline())           # raises if the trainer is gone: the process ends

    def web_search(self, query: str) -> str:
        """Search the web. -> the text of the results"""
        self.send({"key": self.key, "search": str(query)[:MAX_ANSWER]})
        reply = self.receive()
        self.found.add(reply)
        return reply

    def final_answer_print(self, answer: Any) -> None:
        """Print the answer, and end the task with it."""
        self.answers.append(str(answer)[:MAX_ANSWER])
        print(answer)

    def show(self, value: Any) -> None:
        """Print the value of an expression as a notebook does, but a search reply as it is."""
        is_reply = type(value) is str and value in self.found
        if value is not None:
            self.out.write((value if is_reply else repr(value)) + "\n")

    def restore_names(self) -> None:
        """Put back what an earlier step may have deleted or replaced."""
        sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BytesIO())           # exit() closes it
        sys.stdout = sys.__stdout__ = self.out
        sys.stderr = sys.__stderr__ = self.out
        sys.modules["__main__"] = self.main
        vars(self.builtins)["<show>"] = self.show
        self.main.__name__ = "__main__"
        self.main.__builtins__ = self.builtins
        self.main.web_search = self.web_search
        self.main.final_answer_print = self.final_answer_print

    def run_step(self, name: str, code: str) -> bool:
        """Run a step; `out` and `answers` then hold what it printed and answered. -> whether it failed"""
        vars(self.out).clear()                             # also what model code put there
        self.answers.clear()
        self.restore_names()
        try:
            execute(code, name, vars(self.main))
            return False
        except BaseException as error:                     # SystemExit, too: the session goes on
            if self.out.text()[-1:] not in ("", "\n"):
                self.out.write("\n")
            self.out.write(describe(error))
            if isinstance(error, MemoryError):
                bytes(self.memory // 8)                    # raises if the memory is nearly full: start anew
                self.out.write(f"(The interpreter has {self.memory >> 20} MiB of memory.)\n")
            return True

    def run_steps(self) -> None:
        """Run what the trainer sends, step by step, and report on each."""
        while True:
            self.key, name, code = self.receive()
            failed = self.run_step(name, code)
            answer = self.answers[-1] if self.answers else None
            self.send({"key": self.key, "text": self.out.text(), "answer": answer, "error": failed})


# The names that the model reads in its errors.
Session.web_search.__qualname__ = "web_search"
Session.final_answer_print.__qualname__ = "final_answer_print"


def repeat_random_numbers() -> None:
    """Let a replay draw the same, also from secrets, default_rng() and generators without a seed."""
    plain_seed = random.Random.seed
    os.urandom = random.Random(0).randbytes
    random._urandom = os.urandom

    def seed(generator: random.Random, a: Any = None, version: int = 2) -> None:
        plain_seed(generator, os.urandom(16) if a is None else a, version)

    replace(random.Random, "seed", seed)
    random.seed = random._inst.seed
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)


def serve(sock: socket.socket, loaded: int, seal: Callable[[], None] | None) -> None:
    """The life of a session, from the fork to the end of its process.

    loaded: bytes of address space that the zygote uses; seal: gives up the last rights, None without seccomp.
    """
    if LINUX:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)      # PR_SET_PDEATHSIG: die with the zygote
    os.close(0)
    os.open(os.devnull, os.O_RDONLY)                       # number 0; shared with no other process
    os.dup2(0, 1)                                          # what is written below Python fails
    os.dup2(0, 2)
    repeat_random_numbers()
    sys.argv = [""]
    session = Session(sock)
    session.memory = session.receive()                     # a session waits here until it is needed
    limits = {resource.RLIMIT_AS: loaded + session.memory, resource.RLIMIT_CPU: CPU_SECONDS,
              resource.RLIMIT_NOFILE: 256,                 # and no core dumps, files written or processes
              resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_NPROC: 0}
    for limit, value in limits.items():
        with suppress(ValueError, OSError):                # not on every system, or one that is lower already
            resource.setrlimit(limit, (value, value))
    if seal:
        seal()
    session.run_steps()                                    # nothing in this process is trusted from here on
