"""The sandbox of env.py: a Python interpreter that model-written code cannot break, fork or cheat.

Trainer -> zygote -> one sealed process per `Interpreter`. This file is the trainer's side, zygote.py the
other: a process with a clean environment that has numpy and sympy warm, gives up its rights, forks sessions
ahead of need and runs no model code. Covered, in layers, each tried at start-up, its absence said on stderr:
- a clean process: no environment variables, memory or files of the trainer; no capabilities, even for root;
- Landlock: only Python, its libraries and time zones can be opened, read-only. Without it no file can be
  opened at all, so code can import only what the zygote has loaded;
- seccomp: compute, and use the one socket; no other socket, writing, process, thread or signal;
- limits on memory, open files and processor time; the trainer bounds the seconds and the output of a step.
A session is killed when its `Interpreter` ends; zygote and sessions die with the trainer, however it dies.
Files that code writes in its current folder are in its own memory. Threads run in turn, each at its start().
Not covered: bugs of the kernel; whether a path exists (stat works); covert channels by timing. Elsewhere than
on Linux only `--sandbox off` works: a plain child process that can do whatever its user can.

A session *is* its log of (code, search replies): a fork, and the recovery after a killed step, replay the log
in a new process with the same hash seed, random numbers and replies, so no search is made twice. Only code
that reads the clock or memory addresses can differ in a replay.
"""
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress
from typing import NamedTuple

from sandbox import zygote
from sandbox.zygote import LINUX, MAX_ANSWER, MAX_OUTPUT

MAX_CODE = 60_000        # characters of a step
MAX_SEARCHES = 20        # in one step
MAX_MESSAGE = 1 << 20    # bytes from a session
SANDBOX, PRELOAD = "auto", True         # see set_sandbox

CLEAN_ENV = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/", "PYTHONHASHSEED": "0",
             "PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1", "OPENBLAS_NUM_THREADS": "1"}


class Observation(NamedTuple):
    text: str              # what the model sees; "None" if nothing was printed
    answer: str | None     # what `final_answer_print` received in this step
    error: bool            # an exception, or the step was killed


def set_sandbox(mode, preload=True):
    """auto: use the layers there are, name the missing; strict: refuse if one is missing; off: use none.

    preload: have numpy and sympy loaded for all sessions; without, a session starts in half the time.
    """
    global SANDBOX, PRELOAD
    if mode not in ("auto", "strict", "off"):
        raise ValueError(f"--sandbox {mode}: not auto, strict or off")
    SANDBOX, PRELOAD = mode, preload
    ZYGOTE.stop()


class Killed(Exception):
    """A session is gone; the message says why."""


class Zygote:
    """This process's zygote, started with the first session, and again if it died."""

    def __init__(self):
        self.forget()

    def forget(self):
        """Also after a fork of the trainer: parent and child do not share a zygote."""
        cores = len(os.sched_getaffinity(0)) if LINUX else os.cpu_count()
        self.slots = threading.Semaphore(max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1))
        self.lock, self.process = threading.Lock(), None

    def start(self):
        if SANDBOX != "off" and not LINUX:
            raise RuntimeError("the sandbox needs Linux; --sandbox off runs model code unprotected")
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if LINUX and hard > 1024:                          # a session takes two file descriptors
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 16), hard))
        self.control, child = socket.socketpair()
        packages = os.pathsep.join(path for path in sys.path if path.endswith("-packages"))
        inherited = {"PYTHONPATH": packages, "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")}
        self.process = subprocess.Popen(
            [sys.executable, os.path.abspath(zygote.__file__), SANDBOX, "preload" if PRELOAD else ""],
            env=CLEAN_ENV | inherited, cwd="/", start_new_session=True,
            stdin=child, stdout=subprocess.DEVNULL)
        child.close()
        ready = self.control.recv(1)
        if not ready or ready == b"-" and SANDBOX == "strict":
            self.stop()
            raise RuntimeError(f"the sandbox (--sandbox {SANDBOX}) cannot start; the reason is above")

    def stop(self):
        if self.process:
            self.control.close()                           # the zygote ends, and with it its sessions
            self.process.wait()
        self.process = None

    def session(self, memory):
        """-> a socket to a new session, its process id, a pidfd of it (Linux: a number may be reused)."""
        try:
            with self.lock:
                if self.process is None or self.process.poll() is not None:
                    self.start()
                self.control.settimeout(60)
                self.control.sendall(b"+")
                pid, (fd,), *_ = socket.recv_fds(self.control, 16, 1)
            sock = socket.socket(fileno=fd)
            if int(pid) < 0:
                raise ChildProcessError("no memory or no process is left")
            sock.set_inheritable(False)
            sock.sendall(b"%d\n" % memory)
            return sock, int(pid), os.pidfd_open(int(pid)) if LINUX else None
        except (OSError, ValueError) as error:             # no file descriptor, process or memory; it died
            raise Killed(f"The interpreter could not start ({error}).") from None


ZYGOTE = Zygote()
os.register_at_fork(after_in_child=ZYGOTE.forget)


def waited(pid):
    """Seconds for which a process was ready to run while others had the cores (0 where this is not known)."""
    with suppress(OSError, IndexError), open(f"/proc/{pid}/schedstat") as file:
        return int(file.read().split()[1]) / 1e9
    return 0


def receive(sock, seconds, pid):
    """One JSON line of a session, which may send anything at any pace. -> it, the seconds that are left

    Waiting for a core does not count, up to the same time again: a busy machine shall not change results.
    """
    line, end, before = b"", time.monotonic() + seconds, waited(pid)
    left = lambda: end - time.monotonic() + min(waited(pid) - before, seconds)
    while not line.endswith(b"\n"):
        now = max(end - time.monotonic(), 0) or left()
        if now <= 0.01:
            raise TimeoutError
        sock.settimeout(now)
        with suppress(TimeoutError):
            chunk = sock.recv(1 << 16)
            line += chunk
            if not chunk or len(line) > MAX_MESSAGE:
                raise ConnectionError
    return json.loads(line), left()


def kill(sock, pid, pidfd, owner):
    """End a session at once; a fork of the trainer only lets go of it."""
    with suppress(ProcessLookupError):
        if os.getpid() == owner:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL) if LINUX else os.kill(pid, signal.SIGKILL)
    sock.close()
    if LINUX:
        os.close(pidfd)


def clean(text, limit=MAX_OUTPUT + 100):
    """Text of a session or a search, without what JSON and tokenizers choke on (surrogates, NUL)."""
    text = text[:limit] if isinstance(text, str) else ""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


class Interpreter:
    """The Python state of one trajectory in its own sealed process. Used by one thread at a time."""

    def __init__(self, search=None, seconds=10, memory=1 << 30):
        """search: query -> text; seconds: of computing a step; memory: bytes beyond the loaded libraries."""
        self.search, self.seconds, self.memory = search, seconds, memory
        self.log, self.end = [], None
        self.lost = False                                  # whether a step ran in a state that is not its own

    def fork(self):
        """An independent copy from here on. Its process starts, and replays the log, with its first step."""
        copy = Interpreter(self.search, self.seconds, self.memory)
        copy.log, copy.lost = list(self.log), self.lost
        return copy

    def close(self):
        if self.end:
            self.end()
        self.end = None

    def run(self, code):
        """-> Observation. Raises only what the search raises. A killed step leaves the state as it was."""
        if len(code) > MAX_CODE:
            return Observation(f"Error: the code is longer than {MAX_CODE} characters.", None, True)
        replies = []
        try:
            if self.end and self.owner != os.getpid():     # a fork of the trainer: the session is not its own
                self.close()
            if not self.end:
                lost, self.lost = self.lost, True          # if it cannot start, or repeat its log
                self.start()
                self.lost = lost
            observation = self.talk([(f"<step {len(self.log) + 1}>", code, None)], self.seconds, replies)
            self.log.append((code, replies))
            return observation
        except Killed as reason:
            self.close()
            return Observation(f"Error: {reason} The variables are as before this step.", None, True)
        except BaseException:                              # of the search; Ctrl-C. The next step replays
            self.close()
            raise

    def start(self):
        """Start a session and replay the log in it."""
        self.sock, self.pid, pidfd = ZYGOTE.session(self.memory)
        self.owner = os.getpid()
        self.end = weakref.finalize(self, kill, self.sock, self.pid, pidfd, self.owner)
        if self.log:
            steps = [(f"<step {n}>", *step) for n, step in enumerate(self.log, 1)]
            try:
                self.talk(steps, 2 * self.seconds * len(steps))
                self.talk([("<step 0>", "", [])], self.seconds)        # does it still answer?
            except Killed as reason:
                self.log = []
                raise Killed(f"{reason} It happened when earlier steps were repeated: all is lost.") from None

    def talk(self, steps, seconds, replies=None):
        """Have `steps` executed, the searches of a new one answered into `replies`. -> the last's Observation

        A line that an earlier step left behind does not have the key of this one.
        """
        key = os.urandom(8).hex()
        message = [key, steps]
        while True:
            try:
                with ZYGOTE.slots:                         # waiting for a core, or a search, does not count
                    self.sock.settimeout(seconds)
                    self.sock.sendall(json.dumps(message).encode() + b"\n")
                    reply, seconds = receive(self.sock, seconds, self.pid)
                    if reply["key"] != key:
                        raise ValueError
            except TimeoutError:
                raise Killed(f"TimeoutError: the step took longer than {self.seconds} seconds.") from None
            except (OSError, ValueError, RecursionError, TypeError, KeyError):
                raise Killed("The interpreter died (a crash, or the memory or processor limit).") from None
            if "search" not in reply or replies is None:
                text, answer = clean(reply.get("text")).rstrip(), reply.get("answer")
                return Observation(text or "None", answer and clean(answer), bool(reply.get("error")))
            message = "Error: too many searches in one step."
            if len(replies) < MAX_SEARCHES:
                query = clean(reply["search"], MAX_ANSWER)
                message = clean(self.search(query) if self.search else "Error: there is no web search here.")
            replies.append(message)
