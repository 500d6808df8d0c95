"""A session: the process that runs model code, one `Interpreter`'s steps and nothing else.

The zygote imports this file, and every session is a fork of the zygote. What the kernel refuses stays refused
here. Two things that honest code needs are imitated without any right: files in a scratch folder that is only
in memory, and threads that run one after the other.
"""
import ast
import builtins
import concurrent.futures.thread
import ctypes
import errno
import io
import json
import linecache
import os
import random
import resource
import signal
import socket
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Callable
from contextlib import suppress
from typing import Any

MAX_OUTPUT = 10_000      # characters of an observation or a search reply; the middle of a longer one is cut
MAX_ANSWER = 2_000       # characters of a final answer or a search query
CPU_SECONDS = 600        # of a session in all; `Interpreter(seconds=)` is per step
SCRATCH = "/scratch"     # the current folder of model code
LINUX = sys.platform == "linux"

AnyPath = str | bytes | int | os.PathLike


# ---- what a step printed ----

class Output(io.TextIOBase):
    """Standard output: keeps the first and the last MAX_OUTPUT / 2 characters and counts those between."""
    encoding = "utf-8"

    def __init__(self) -> None:
        self.clear()

    def reconfigure(self, **options: Any) -> None:
        """Programs call this on sys.stdout; there is nothing to change."""

    def clear(self) -> None:
        vars(self).clear()                                 # also what model code put there
        self.head = []
        self.tail = ""
        self.total = 0

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        half = MAX_OUTPUT // 2
        room = max(half - self.total, 0)                   # characters that the head can still take
        if room > 0:
            self.head.append(text[:room])
        rest = text[max(room, len(text) - half):]          # of a huge text, only what the tail can hold
        self.tail = (self.tail + rest)[-half:]
        self.total += len(text)
        return len(text)

    def text(self) -> str:
        cut = self.total - MAX_OUTPUT // 2 - len(self.tail)
        if cut > 0:
            return "".join(self.head) + f"\n... [{cut} characters cut] ...\n" + self.tail
        return "".join(self.head) + self.tail


# ---- imitations: files in memory, threads in turn ----

class File(io.BytesIO):
    """An open file of the scratch folder. What was written is kept on flush and on close."""

    def __init__(self, files: dict[str, bytes], name: str, mode: str) -> None:
        super().__init__(b"" if "w" in mode else files.get(name, b""))
        self.files = files
        self.name = name
        self.mode = mode
        if "a" in mode:
            self.seek(0, io.SEEK_END)
        self.flush()                                       # "w" empties the file, "a" and "x" make it

    def readable(self) -> bool:
        return "r" in self.mode or "+" in self.mode

    def writable(self) -> bool:
        return any(letter in self.mode for letter in "wax+")

    def flush(self) -> None:
        if not self.closed and self.writable():
            self.files[self.name] = self.getvalue()

    def close(self) -> None:
        self.flush()
        super().close()


def expect(condition: bool, number: int, path: AnyPath) -> None:
    """Raise the OSError of this errno, as FileNotFoundError for ENOENT, unless the condition holds."""
    if not condition:
        raise OSError(number, os.strerror(number), path)


class Scratch:
    """open() and common functions of os, for a current folder that is only in this process's memory.

    Nothing is written anywhere. Paths outside the folder go to the real functions, and the kernel decides.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.folders = {SCRATCH}
        self.real_open = io.open
        self.real_os = types.SimpleNamespace(**vars(os))

    def find(self, path: AnyPath) -> str | None:
        """The absolute path if it is in the scratch folder, else None; a file descriptor is never in it."""
        if not isinstance(path, (str, bytes, os.PathLike)):
            return None
        full = os.path.normpath(os.path.join(SCRATCH, os.fsdecode(path)))
        if full == SCRATCH or full.startswith(SCRATCH + "/"):
            return full
        return None

    def open(self, file: AnyPath, mode: str = "r", buffering: int = -1, encoding: str | None = None,
             errors: str | None = None, newline: str | None = None, closefd: bool = True,
             opener: Callable | None = None) -> Any:
        name = self.find(file)
        letters = set(mode)
        proper = letters <= set("rwxabt+") and len(letters & set("rwxa")) == 1
        if name is None or opener or not proper:           # the real open() knows the error of a wrong mode
            return self.real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        expect(name not in self.folders, errno.EISDIR, file)
        if "x" in mode:
            expect(name not in self.files, errno.EEXIST, file)
        if "r" in mode:
            expect(name in self.files, errno.ENOENT, file)
        else:
            expect(os.path.dirname(name) in self.folders, errno.ENOENT, file)
        raw = File(self.files, name, mode)
        if "b" in mode:
            return raw
        return io.TextIOWrapper(raw, encoding or "utf-8", errors, newline)

    def stat(self, path: AnyPath, **options: Any) -> os.stat_result:
        name = self.find(path)
        if name is None:
            return self.real_os.stat(path, **options)
        if name in self.files:
            return os.stat_result((0o100644, 0, 0, 1, 0, 0, len(self.files[name]), 0, 0, 0))    # a file
        expect(name in self.folders, errno.ENOENT, path)
        return os.stat_result((0o040755, 0, 0, 1, 0, 0, 0, 0, 0, 0))                            # a folder

    def listdir(self, path: AnyPath = ".") -> list[str]:
        name = self.find(path)
        if name is None:
            return self.real_os.listdir(path)
        expect(name in self.folders, errno.ENOENT, path)
        everything = [*self.folders, *self.files]
        return [os.path.basename(full) for full in everything if os.path.dirname(full) == name]

    def remove(self, path: AnyPath, **options: Any) -> None:
        name = self.find(path)
        if name is None:
            self.real_os.remove(path, **options)
            return
        expect(name in self.files, errno.ENOENT, path)
        del self.files[name]

    def replace(self, source: AnyPath, target: AnyPath, **options: Any) -> None:
        old = self.find(source)
        new = self.find(target)
        if old is None or new is None:
            self.real_os.replace(source, target, **options)
            return
        expect(old in self.files and os.path.dirname(new) in self.folders, errno.ENOENT, source)
        self.files[new] = self.files.pop(old)

    def mkdir(self, path: AnyPath, mode: int = 0o777, **options: Any) -> None:
        name = self.find(path)
        if name is None:
            self.real_os.mkdir(path, mode, **options)
            return
        expect(name not in self.files and name not in self.folders, errno.EEXIST, path)
        expect(os.path.dirname(name) in self.folders, errno.ENOENT, path)
        self.folders.add(name)

    def getcwd(self) -> str:
        return SCRATCH

    def temporary(self, mode: str = "w+b", buffering: int = -1, encoding: str | None = None,
                  newline: str | None = None, suffix: str | None = None, *_: Any, **__: Any) -> Any:
        name = f"{SCRATCH}/tmp{len(self.files)}{suffix or ''}"
        return self.open(name, mode, encoding=encoding, newline=newline)


def imitate_files() -> None:
    """Put a Scratch in the place of open() and of the common functions of os and tempfile."""
    scratch = Scratch()
    builtins.open = scratch.open
    io.open = scratch.open
    os.stat = scratch.stat
    os.lstat = scratch.stat
    os.listdir = scratch.listdir
    os.remove = scratch.remove
    os.unlink = scratch.remove
    os.rename = scratch.replace
    os.replace = scratch.replace
    os.mkdir = scratch.mkdir
    os.getcwd = scratch.getcwd
    tempfile.tempdir = SCRATCH
    tempfile.NamedTemporaryFile = scratch.temporary
    tempfile.TemporaryFile = scratch.temporary


def start_now(thread: threading.Thread) -> None:
    """Thread.start: the whole run of the thread."""
    thread._started.set()
    try:
        thread.run()
    except BaseException as error:                         # any error of model code is the thread's own
        print(f"Exception in thread {thread.name}:\n{describe(error)}", file=sys.stderr)


def submit_now(executor: concurrent.futures.Executor, function: Callable, /, *args: Any,
               **kwargs: Any) -> concurrent.futures.Future:
    """Executor.submit: -> a future that is already done."""
    future = concurrent.futures.Future()
    try:
        future.set_result(function(*args, **kwargs))
    except BaseException as error:                         # any error of model code is the future's
        future.set_exception(error)
    return future


def join_now(thread: threading.Thread, timeout: float | None = None) -> None:
    """Thread.join: a thread has ended when its start() returns."""


def never_alive(thread: threading.Thread) -> bool:
    return False


def imitate_threads() -> None:
    """Let threads and pools do their work at once and in their order: the same in every replay."""
    threading.Thread.start = start_now
    threading.Thread.join = join_now
    threading.Thread.is_alive = never_alive
    concurrent.futures.ThreadPoolExecutor.submit = submit_now
    concurrent.futures.ProcessPoolExecutor = concurrent.futures.ThreadPoolExecutor


# ---- a step ----

def execute(code: str, name: str, scope: dict[str, Any]) -> None:
    """Run a step. Its last expression is shown, as in a notebook, and every bare web_search(...)."""
    linecache.cache[name] = (len(code), None, code.splitlines(True), name)       # tracebacks quote the line
    tree = compile(code, name, "exec", ast.PyCF_ONLY_AST)
    for node in tree.body:
        if not isinstance(node, ast.Expr):
            continue
        searches = isinstance(node.value, ast.Call) and getattr(node.value.func, "id", None) == "web_search"
        if searches or node is tree.body[-1]:              # `expression` becomes `<show>(expression)`
            show = ast.Call(ast.Name("<show>", ast.Load()), [node.value], [])
            node.value = ast.copy_location(show, node.value)
    exec(compile(ast.fix_missing_locations(tree), name, "exec"), scope)


def describe(error: BaseException) -> str:
    """A traceback: the innermost six lines of model code, without library code; a hint if a limit was met."""
    report = traceback.TracebackException(type(error), error, error.__traceback__, limit=-100)
    report.stack[:] = [frame for frame in report.stack if frame.filename.startswith("<step ")][-6:]
    text = "".join(report.format(chain=False))
    if isinstance(error, PermissionError) or "start new thread" in text:
        text += "(The interpreter has no network and no processes, and files only in its current folder.)\n"
    if isinstance(error, EOFError):
        text += "(Nobody answers input() here.)\n"
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
        sys.modules["builtins"] = types.ModuleType("builtins")
        self.builtins = vars(sys.modules["builtins"])
        self.builtins.update(vars(builtins))
        self.memory = 0                                    # bytes
        self.key = ""                                      # the trainer's, of the steps that it sent last
        self.replies: list[str] | None = None              # recorded search replies; None in a new step
        self.answers: list[str] = []                       # final answers of the step
        self.found: set[str] = set()                       # all search replies

    def send(self, message: dict[str, Any]) -> None:
        self.sock.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> Any:
        line = self.lines.readline()
        if not line:                                       # the trainer has let go of this session
            sys.exit()
        return json.loads(line)

    def web_search(self, query: str) -> str:
        """Search the web. -> the text of the results"""
        if self.replies is None:
            self.send({"key": self.key, "search": str(query)[:MAX_ANSWER]})
            reply = self.receive()
        else:
            reply = self.replies.pop(0)
        self.found.add(reply)
        return reply

    def final_answer_print(self, answer: Any) -> None:
        """Print the answer, and end the task with it."""
        self.answers.append(str(answer)[:MAX_ANSWER])
        print(answer)

    def show(self, value: Any) -> None:
        """Print the value of an expression as a notebook does, but a search reply as it is."""
        if value is None:
            return
        if type(value) is str and value in self.found:
            self.out.write(value + "\n")
        else:
            self.out.write(repr(value) + "\n")

    def restore_names(self) -> None:
        """Put back what an earlier step may have deleted or replaced."""
        sys.stdout = self.out
        sys.stderr = self.out
        sys.modules["__main__"] = self.main
        self.builtins["<show>"] = self.show
        self.main.__name__ = "__main__"
        self.main.__builtins__ = self.builtins
        self.main.web_search = self.web_search
        self.main.final_answer_print = self.final_answer_print

    def run_step(self, name: str, code: str) -> bool:
        """Run a step; `out` and `answers` then hold what it printed and answered. -> whether it failed"""
        self.out.clear()
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
        """Run what the trainer sends, a new step or a log to repeat; report on the last step of each line."""
        while True:
            self.key, steps = self.receive()
            for name, code, replies in steps:
                self.replies = replies
                failed = self.run_step(name, code)
            answer = self.answers[-1] if self.answers else None
            self.send({"key": self.key, "text": self.out.text(), "answer": answer, "error": failed})


# The names that the model reads in its errors, and that recorded prefixes hold.
Session.web_search.__qualname__ = "session.<locals>.web_search"
Session.final_answer_print.__qualname__ = "session.<locals>.final_answer_print"


def repeat_random_numbers() -> None:
    """Let a replay draw the same, also from secrets, default_rng() and generators without a seed."""
    plain_seed = random.Random.seed
    os.urandom = random.Random(0).randbytes
    random._urandom = os.urandom

    def seed(generator: random.Random, a: Any = None, version: int = 2) -> None:
        plain_seed(generator, os.urandom(16) if a is None else a, version)

    random.Random.seed = seed
    random.seed = random._inst.seed
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)


def set_limits(address_space: int) -> None:
    """Bound what the process may use; no core dumps, no writing of files, no further processes."""
    limits = {resource.RLIMIT_AS: address_space, resource.RLIMIT_CPU: CPU_SECONDS,
              resource.RLIMIT_NOFILE: 256, resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0,
              resource.RLIMIT_NPROC: 0}
    for limit, value in limits.items():
        with suppress(ValueError, OSError):                # not on every system, or one that is lower already
            resource.setrlimit(limit, (value, value))


def serve(sock: socket.socket, loaded: int, seal: Callable[[], None] | None) -> None:
    """The life of a session, from the fork to the end of its process.

    loaded: bytes of address space that the zygote uses; seal: gives up the last rights, None without seccomp.
    """
    if LINUX:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)      # PR_SET_PDEATHSIG: die with the zygote
    os.dup2(1, 2)                                          # /dev/null instead of the trainer's stderr
    repeat_random_numbers()
    sys.argv = [""]
    sys.stdin = io.StringIO()
    session = Session(sock)
    session.memory = session.receive()                     # a session waits here until it is needed
    set_limits(loaded + session.memory)
    if seal:
        seal()
    session.run_steps()                                    # nothing in this process is trusted from here on
