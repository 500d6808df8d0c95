"""The trainer's side of the sandbox: `Interpreter`, the Python state of one trajectory.

Trainer -> zygote (zygote.py) -> one session (session.py) per Interpreter. README.md says what this covers.

A session *is* its log of (code, searches). A fork, and the recovery after a killed step, replay the log
in a new process with the same hash seed, random numbers and replies, so no search is made twice. Only code
that reads the clock, memory addresses or random numbers below Python's can differ in a replay.
"""
import errno
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from .session import INPUT_HINT, LINUX, MAX_ANSWER, MAX_OUTPUT, THREADS_HINT

MAX_CODE = 60_000        # characters of a step
MAX_SEARCHES = 20        # in one step
MAX_MESSAGE = 1 << 20    # bytes from a session
MAX_REPLY = MAX_OUTPUT + 100            # the same, with the note that something was cut
MAX_WAIT = 20            # so many times its own seconds a step may wait for a core

# What a session may reply: a search, or the end of a step, with or without an answer.
REPLIES = [{"key": str, "search": str}, {"key": str, "text": str, "error": bool, "answer": str},
           {"key": str, "text": str, "error": bool, "answer": type(None)}]

ZYGOTE_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "zygote.py")
CLEAN_ENV = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/", "PYTHONHASHSEED": "0",
             "PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1", "OPENBLAS_NUM_THREADS": "1",
             "MPLBACKEND": "Agg", "MPLCONFIGDIR": "/tmp", "TQDM_DISABLE": "1"}

# What --sandbox may be, and the layers that may then be missing.
MODES = {"auto": ["Landlock"], "strict": [], "without-seccomp": ["seccomp"], "off": ["all"]}

# What a killed step may not have known, by words of its code.
HINTS = {"thread|executor|acquire|queue": THREADS_HINT, r"input\(|stdin": INPUT_HINT}

Searches = list[tuple[str, str]]                           # of a step: query and reply


class Observation(NamedTuple):
    text: str              # what the model sees; "None" if nothing was printed
    answer: str | None     # what `final_answer_print` received in this step
    error: bool            # an exception, or the step was killed


class SandboxError(Exception):
    """Model code cannot be sealed as `--sandbox` wants it; the message is one sentence that says why."""


def set_sandbox(mode: str, preload: bool = True) -> None:
    """Choose one of MODES and start; raises SandboxError if a layer is missing that must not.

    preload: have numpy and sympy loaded for all sessions; without, a session starts in half the time.
    """
    if mode not in MODES:
        raise ValueError(f"--sandbox {mode}: not one of {', '.join(MODES)}")
    ZYGOTE.stop()
    ZYGOTE.mode = mode
    ZYGOTE.preload = preload
    ZYGOTE.start()


class Killed(Exception):
    """A session is gone; the message says why."""
    state = "The variables are as before this step."


# ---- one session, seen from here ----

class Computed:
    """Seconds that all sessions of this process have computed so far."""
    seconds = 0.0
    lock = threading.Lock()


def seconds_of_sessions() -> float:
    """Seconds that all sessions of this process have computed so far; 0 where that is not known."""
    return Computed.seconds


class Session:
    """The trainer's end of a session: the socket to it and its process id."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self.sock = sock
        self.pid = pid
        self.pidfd = os.pidfd_open(pid) if LINUX else None # stays true when the number is used again
        self.owner = os.getpid()                           # a fork of the trainer must not use or kill it
        self.counted = 0.0                                 # seconds that stand in Computed already

    def ask(self, message: Any, seconds: float) -> tuple[bytes, float]:
        """Send a message and have the session run until it replies. -> a line, the seconds that are left

        It may send anything at any pace. Its waiting for a core does not count, within bounds: a step must
        not fail because the machine is busy.
        """
        start = time.monotonic()
        _, waited_before = self.times()
        self.signal(signal.SIGCONT)
        self.sock.settimeout(seconds)                      # it may leave the message unread
        self.sock.sendall(json.dumps(message).encode() + b"\n")
        left = seconds
        line = b""
        while not line.endswith(b"\n"):
            if left <= 0.01:
                raise TimeoutError
            self.sock.settimeout(left)
            with suppress(TimeoutError):                   # perhaps it waited for a core: see what is left
                chunk = self.sock.recv(1 << 16)
                line += chunk
                if not chunk or len(line) > MAX_MESSAGE:
                    raise ConnectionError
            computed, waited_now = self.times()
            waited = min(waited_now - waited_before, MAX_WAIT * seconds)
            left = seconds + waited - (time.monotonic() - start)
        self.signal(signal.SIGSTOP)                        # nothing runs between steps
        self.count(computed)
        return line, max(left, 0.01)

    def times(self) -> tuple[float, float]:
        """Seconds in which the process ran, and in which it was ready to while others had the cores; 0 if not
        known."""
        with suppress(OSError, ValueError), open(f"/proc/{self.pid}/schedstat", "rb", 0) as file:
            ran, waited, _ = file.read().split()
            return int(ran) / 1e9, int(waited) / 1e9
        return 0.0, 0.0

    def count(self, computed: float) -> None:
        """Add what it has computed since the last time to Computed."""
        with Computed.lock:
            Computed.seconds += max(0.0, computed - self.counted)
        self.counted = max(self.counted, computed)

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            if self.pidfd is None:
                os.kill(self.pid, number)
            else:
                signal.pidfd_send_signal(self.pidfd, number)

    def kill(self) -> None:
        """End the session at once; a fork of the trainer only lets go of it."""
        if os.getpid() == self.owner:
            self.count(self.times()[0])                    # also of a step that did not come to its end
            self.signal(signal.SIGKILL)
        self.sock.close()
        if self.pidfd is not None:
            os.close(self.pidfd)


def clean(text: str, limit: int = MAX_REPLY) -> str:
    """Text of a session or a search, without what JSON and tokenizers choke on (surrogates, NUL)."""
    return text[:limit].replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()[:limit]


# ---- the zygote, seen from here ----

class Zygote:
    """This process's zygote. It is started with the first session, and again if it died."""
    mode = "auto"                                          # see set_sandbox
    preload = True

    def __init__(self) -> None:
        """Have none. Also called after a fork of the trainer: parent and child do not share a zygote."""
        self.lock = threading.Lock()
        self.process: subprocess.Popen | None = None
        self.control: socket.socket | None = None

    def start(self) -> None:
        """Start it and hear which layers are missing; raises SandboxError if one must not."""
        if self.mode != "off" and not LINUX:
            raise SandboxError("the sandbox needs Linux; --sandbox off runs model code unprotected")
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
        with self.control.makefile("rb") as file:
            line = file.readline()
        missing = json.loads(line or '{"start": "its process ended; the reason is above"}')
        must_not = [why for layer, why in missing.items() if layer not in MODES[self.mode]]
        if must_not:
            self.stop()
            raise SandboxError(f"--sandbox {self.mode} cannot start: {'; '.join(must_not)}")
        for why in missing.values():
            print("sandbox:", why, file=sys.stderr, flush=True)

    def stop(self) -> None:
        if self.process:
            self.process.kill()                            # its sessions die with it
            self.process.wait()

    def session(self, memory: int) -> Session:
        """A new session that may use so many bytes; raises Killed."""
        try:
            with suppress(ConnectionError, ProcessLookupError):
                return self.take_session(memory)
            return self.take_session(memory)               # the one that waited had died: once more
        except OSError as error:                           # no file descriptor, process or memory; it died
            raise Killed(f"The interpreter could not start ({error}).") from None

    def take_session(self, memory: int) -> Session:
        """The session that waits to be needed; raises OSError."""
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self.start()
            self.control.settimeout(60)
            self.control.sendall(b"+")
            pid, descriptors, _, _ = socket.recv_fds(self.control, 16, 1)
        if not pid:
            raise ConnectionError("its zygote died")
        if not descriptors:                                # the kernel drops one for which there is no room
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        sock = socket.socket(fileno=descriptors[0])
        if int(pid) < 0:
            raise ChildProcessError("no memory or no process is left")
        sock.set_inheritable(False)
        sock.sendall(b"%d\n" % memory)
        return Session(sock, int(pid))


ZYGOTE = Zygote()
os.register_at_fork(after_in_child=ZYGOTE.__init__)


# ---- the interpreter ----

class Interpreter:
    """The Python state of one trajectory in its own sealed process. Used by one thread at a time."""
    session: Session | None = None                         # none before the first step, and after close()

    def __init__(self, search: Callable[[str], str] | None = None, seconds: float = 10,
                 memory: int = 1 << 30) -> None:
        """search: query -> text; seconds: of computing a step; memory: bytes beyond the loaded libraries."""
        self.search = search
        self.seconds = seconds
        self.memory = memory
        self.log: list[tuple[str, Searches]] = []          # the code and the searches of each step
        self.lost = False                                  # whether a step ran in a state that is not its own

    def fork(self) -> "Interpreter":
        """An independent copy from here on. Its process starts, and replays the log, with its first step."""
        copy = Interpreter(self.search, self.seconds, self.memory)
        copy.log = list(self.log)
        copy.lost = self.lost
        return copy

    def close(self) -> None:
        """End the process; the next step would start another one and replay the log."""
        if self.session:
            self.session.kill()
        self.session = None

    __del__ = close

    def run(self, code: str) -> Observation:
        """Run a step; a killed one leaves the state as it was. Raises what the search does, SandboxError."""
        if len(code) > MAX_CODE:
            return Observation(f"Error: the code is longer than {MAX_CODE} characters.", None, True)
        try:
            if self.session and self.session.owner != os.getpid():     # this is a fork of the trainer
                self.close()
            if not self.session:
                self.start()
            observation, searches = self.step(len(self.log) + 1, code)
        except Killed as reason:
            self.close()
            hints = [hint for words, hint in HINTS.items() if re.search(words, code.lower())]
            return Observation(" ".join([f"Error: {reason} {reason.state}", *hints]), None, True)
        except BaseException:                              # of the search; Ctrl-C. The next step replays
            self.close()
            raise
        self.log.append((code, searches))
        return observation

    def start(self) -> None:
        """Start a session and replay the log in it. `lost` stays set unless both work."""
        lost_before = self.lost
        self.lost = True
        self.session = ZYGOTE.session(self.memory)
        try:
            for number, (code, searches) in enumerate(self.log, 1):
                self.step(number, code, searches)
            if self.log:
                self.step(0, "", [])                       # does it still answer?
        except Killed as reason:
            self.log = []
            reason.state = "It happened when earlier steps were repeated: all is lost."
            raise
        self.lost = lost_before

    def step(self, number: int, code: str, recorded: Searches | None = None) -> tuple[Observation, Searches]:
        """Run a step, or one of the log with its recorded searches, in the session.

        -> what the model sees, the searches. Raises Killed, also if the searches are not the recorded ones.
        """
        searches = []
        key = os.urandom(8).hex()                          # a line that an earlier step left does not have it
        seconds = self.seconds if recorded is None else 2 * self.seconds
        reply, left = self.ask([key, f"<step {number}>", code], key, seconds)
        while "search" in reply:
            query = clean(reply["search"], MAX_ANSWER)
            if len(searches) == MAX_SEARCHES:              # these are not logged, there may be thousands
                reply, left = self.ask("Error: too many searches in one step.", key, left)
                continue
            if recorded is not None:
                found = recorded[len(searches)][1] if len(searches) < len(recorded) else ""
            elif self.search is None:
                found = "Error: there is no web search here."
            else:
                found = clean(self.search(query))
            searches.append((query, found))
            reply, left = self.ask(found, key, left)
        if recorded is not None and searches != recorded:
            raise Killed(f"Step {number} made other searches than before.")
        answer = None if reply["answer"] is None else clean(reply["answer"], MAX_ANSWER)
        return Observation(clean(reply["text"]).rstrip() or "None", answer, reply["error"]), searches

    def ask(self, message: Any, key: str, seconds: float) -> tuple[dict[str, Any], float]:
        """Send a message -> the reply to it, the seconds that are left. Raises Killed."""
        try:
            line, left = self.session.ask(message, seconds)
            reply = json.loads(line)
            types = {name: type(value) for name, value in reply.items()}
            if types in REPLIES and reply["key"] == key:
                return reply, left
        except TimeoutError:
            raise Killed(f"TimeoutError: the step took longer than {self.seconds} seconds.") from None
        except (OSError, ValueError, AttributeError, RecursionError):
            pass                                           # the connection broke, or what came was forged
        raise Killed("The interpreter died (a crash, deep recursion, or the memory or processor limit).")
