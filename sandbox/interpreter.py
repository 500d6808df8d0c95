"""The trainer's side of the sandbox: `Interpreter`, the Python state of one trajectory.

Trainer -> zygote (zygote.py) -> one session (session.py) per Interpreter. README.md says what this covers.

A session *is* its log of (code, search replies). A fork, and the recovery after a killed step, replay the log
in a new process with the same hash seed, random numbers and replies, so no search is made twice. Only code
that reads the clock or memory addresses can differ in a replay.
"""
import errno
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
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from .session import LINUX, MAX_ANSWER, MAX_OUTPUT

MAX_CODE = 60_000        # characters of a step
MAX_SEARCHES = 20        # in one step
MAX_MESSAGE = 1 << 20    # bytes from a session
MAX_REPLY = MAX_OUTPUT + 100            # the same, with the note that something was cut

ZYGOTE_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "zygote.py")
CLEAN_ENV = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/", "PYTHONHASHSEED": "0",
             "PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1", "OPENBLAS_NUM_THREADS": "1"}


class Observation(NamedTuple):
    text: str              # what the model sees; "None" if nothing was printed
    answer: str | None     # what `final_answer_print` received in this step
    error: bool            # an exception, or the step was killed


def set_sandbox(mode: str, preload: bool = True) -> None:
    """auto: use the layers there are, name the missing; strict: refuse if one is missing; off: use none.

    preload: have numpy and sympy loaded for all sessions; without, a session starts in half the time.
    """
    if mode not in ("auto", "strict", "off"):
        raise ValueError(f"--sandbox {mode}: not auto, strict or off")
    ZYGOTE.mode = mode
    ZYGOTE.preload = preload
    ZYGOTE.stop()


class Killed(Exception):
    """A session is gone; the message says why."""


# ---- one session, seen from here ----

class Deadline:
    """The time that a process has left. Its waiting for a core does not count, up to the same time again.

    Otherwise a step could fail only because the machine is busy.
    """

    def __init__(self, seconds: float, pid: int) -> None:
        self.seconds = seconds
        self.pid = pid
        self.end = time.monotonic() + seconds
        self.waited_before = self.waited()

    def waited(self) -> float:
        """Seconds in which the process was ready to run while others had the cores; 0 if not known."""
        with suppress(OSError, IndexError), open(f"/proc/{self.pid}/schedstat", "rb", 0) as file:
            return int(file.read().split()[1]) / 1e9
        return 0.0

    def left(self) -> float:
        waited = self.waited() - self.waited_before
        return self.end - time.monotonic() + min(waited, self.seconds)


class Session:
    """The trainer's end of a session: the socket to it and its process id."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self.sock = sock
        self.pid = pid
        self.pidfd = os.pidfd_open(pid) if LINUX else None # stays true when the number is used again
        self.owner = os.getpid()                           # a fork of the trainer must not use or kill it

    def send(self, message: Any, seconds: float) -> None:
        self.sock.settimeout(seconds)
        self.sock.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float) -> tuple[bytes, float]:
        """-> a line, the seconds that are left. The session may send anything at any pace."""
        deadline = Deadline(seconds, self.pid)
        line = b""
        while not line.endswith(b"\n"):
            left = deadline.left()
            if left <= 0.01:
                raise TimeoutError
            self.sock.settimeout(left)
            with suppress(TimeoutError):                   # perhaps it waited for a core: see what is left
                chunk = self.sock.recv(1 << 16)
                line += chunk
                if not chunk or len(line) > MAX_MESSAGE:
                    raise ConnectionError
        return line, max(deadline.left(), 0.01)

    def kill(self) -> None:
        """End the session at once; a fork of the trainer only lets go of it."""
        if os.getpid() == self.owner:
            with suppress(ProcessLookupError):
                if self.pidfd is None:
                    os.kill(self.pid, signal.SIGKILL)
                else:
                    signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        self.sock.close()
        if self.pidfd is not None:
            os.close(self.pidfd)


def parse(line: bytes, key: str) -> dict[str, Any]:
    """A session's reply to the message with this key; raises ConnectionError if it is anything else."""
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError):
        raise ConnectionError("not JSON") from None
    if not isinstance(reply, dict) or reply.get("key") != key:
        raise ConnectionError("not the reply to this message")
    return reply


def clean(text: Any, limit: int = MAX_REPLY) -> str:
    """Text of a session or a search, without what JSON and tokenizers choke on (surrogates, NUL)."""
    if not isinstance(text, str):
        return ""
    return text[:limit].replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


# ---- the zygote, seen from here ----

class Zygote:
    """This process's zygote. It is started with the first session, and again if it died."""

    def __init__(self) -> None:
        self.mode = "auto"                                 # see set_sandbox
        self.preload = True
        self.forget()

    def forget(self) -> None:
        """Have none. Also called after a fork of the trainer: parent and child do not share a zygote."""
        cores = len(os.sched_getaffinity(0)) if LINUX else os.cpu_count()
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) # processes that torchrun started on this machine
        self.slots = threading.Semaphore(max(cores // ranks, 1))       # steps that may compute at once
        self.lock = threading.Lock()
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        if self.mode != "off" and not LINUX:
            raise RuntimeError("the sandbox needs Linux; --sandbox off runs model code unprotected")
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if LINUX and hard > 1024:                          # a session takes two file descriptors
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 16), hard))
        packages = os.pathsep.join(path for path in sys.path if path.endswith("-packages"))
        inherited = {"PYTHONPATH": packages, "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")}
        self.control, child = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, ZYGOTE_FILE, self.mode, "preload" if self.preload else ""],
            env=CLEAN_ENV | inherited, cwd="/", start_new_session=True,
            stdin=child, stdout=subprocess.DEVNULL)
        child.close()
        ready = self.control.recv(1)                       # + all layers are there, - some are missing
        if not ready or (ready == b"-" and self.mode == "strict"):
            self.stop()
            raise RuntimeError(f"the sandbox (--sandbox {self.mode}) cannot start; the reason is above")

    def stop(self) -> None:
        if self.process:
            self.control.close()                           # the zygote ends, and with it its sessions
            self.process.wait()
        self.process = None

    def session(self, memory: int) -> Session:
        """A new session that may use so many bytes; raises Killed."""
        try:
            with self.lock:
                if self.process is None or self.process.poll() is not None:
                    self.start()
                self.control.settimeout(60)
                self.control.sendall(b"+")
                pid, descriptors, _, _ = socket.recv_fds(self.control, 16, 1)
            if not pid:
                raise ConnectionError("its zygote died")
            if not descriptors:                            # the kernel drops one for which there is no room
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            sock = socket.socket(fileno=descriptors[0])
            if int(pid) < 0:
                raise ChildProcessError("no memory or no process is left")
            sock.set_inheritable(False)
            sock.sendall(b"%d\n" % memory)
            return Session(sock, int(pid))
        except OSError as error:                           # no file descriptor, process or memory; it died
            raise Killed(f"The interpreter could not start ({error}).") from None


ZYGOTE = Zygote()
os.register_at_fork(after_in_child=ZYGOTE.forget)


# ---- the interpreter ----

class Interpreter:
    """The Python state of one trajectory in its own sealed process. Used by one thread at a time."""

    def __init__(self, search: Callable[[str], str] | None = None, seconds: float = 10,
                 memory: int = 1 << 30) -> None:
        """search: query -> text; seconds: of computing a step; memory: bytes beyond the loaded libraries."""
        self.search = search
        self.seconds = seconds
        self.memory = memory
        self.log: list[tuple[str, list[str]]] = []         # of each step the code and the search replies
        self.lost = False                                  # whether a step ran in a state that is not its own
        self.session: Session | None = None                # none before the first step, and after close()
        self.end_session: Callable[[], None] | None = None

    def fork(self) -> "Interpreter":
        """An independent copy from here on. Its process starts, and replays the log, with its first step."""
        copy = Interpreter(self.search, self.seconds, self.memory)
        copy.log = list(self.log)
        copy.lost = self.lost
        return copy

    def close(self) -> None:
        """End the process; the next step would start another one and replay the log."""
        if self.end_session:
            self.end_session()
        self.end_session = None
        self.session = None

    def run(self, code: str) -> Observation:
        """Run a step. Raises only what the search raises. A killed step leaves the state as it was."""
        if len(code) > MAX_CODE:
            return Observation(f"Error: the code is longer than {MAX_CODE} characters.", None, True)
        try:
            if self.session and self.session.owner != os.getpid():     # this is a fork of the trainer
                self.close()
            if not self.session:
                self.start()
            observation, replies = self.run_new(code)
        except Killed as reason:
            self.close()
            return Observation(f"Error: {reason} The variables are as before this step.", None, True)
        except BaseException:                              # of the search; Ctrl-C. The next step replays
            self.close()
            raise
        self.log.append((code, replies))
        return observation

    def start(self) -> None:
        """Start a session and replay the log in it. `lost` stays set unless both work."""
        lost_before = self.lost
        self.lost = True
        self.session = ZYGOTE.session(self.memory)
        self.end_session = weakref.finalize(self, self.session.kill)   # by close(), or when this is gone
        if self.log:
            try:
                self.replay()
            except Killed as reason:
                self.log = []
                raise Killed(f"{reason} It happened when earlier steps were repeated: all is lost.") from None
        self.lost = lost_before

    def replay(self) -> None:
        """Have all steps of the log run in a new session, then an empty one: does it still answer?"""
        steps = [(f"<step {n}>", code, replies) for n, (code, replies) in enumerate(self.log, 1)]
        key = new_key()
        self.ask([key, steps], key, 2 * self.seconds * len(steps))
        key = new_key()
        self.ask([key, [("<step 0>", "", [])]], key, self.seconds)

    def run_new(self, code: str) -> tuple[Observation, list[str]]:
        """Run a step that is not in the log. -> what the model sees, the replies to its searches"""
        replies = []
        key = new_key()
        step = (f"<step {len(self.log) + 1}>", code, None)             # None: searches are to be made
        reply, left = self.ask([key, [step]], key, self.seconds)
        while "search" in reply:
            if len(replies) >= MAX_SEARCHES:
                found = "Error: too many searches in one step."
            elif self.search is None:
                found = "Error: there is no web search here."
            else:
                found = clean(self.search(clean(reply["search"], MAX_ANSWER)))
            replies.append(found)
            reply, left = self.ask(found, key, left)
        text = clean(reply.get("text")).rstrip()
        answer = reply.get("answer")
        if answer is not None:
            answer = clean(answer)
        return Observation(text or "None", answer, bool(reply.get("error"))), replies

    def ask(self, message: Any, key: str, seconds: float) -> tuple[dict[str, Any], float]:
        """Send a message -> the reply to it, the seconds that are left. Raises Killed."""
        try:
            with ZYGOTE.slots:                             # waiting for a slot, or a search, does not count
                self.session.send(message, seconds)
                line, left = self.session.receive(seconds)
            return parse(line, key), left
        except TimeoutError:
            raise Killed(f"TimeoutError: the step took longer than {self.seconds} seconds.") from None
        except OSError:                                    # the connection broke, or what came was forged
            raise Killed("The interpreter died (a crash, or the memory or processor limit).") from None


def new_key() -> str:
    """For one message. A line that an earlier step left behind does not have the key of this one."""
    return os.urandom(8).hex()
