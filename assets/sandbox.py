"""The sandbox of env.py: a Python interpreter that model-written code cannot break, fork or cheat.

Trainer -> zygote -> one sealed process per `Interpreter`. The zygote is this file, exec'd with a clean
environment; it imports and warms numpy and sympy, gives up its rights and forks a session in milliseconds.
It runs no model code. Covered, in layers, each tried out at start-up and its absence reported on stderr:
- a clean process: no environment variables, memory or files of the trainer; no capabilities, even for root;
- Landlock: only Python, its libraries and time zones can be opened, read-only. Without it no file can be
  opened at all, so code can import only what the zygote has loaded;
- seccomp: compute, and use the one socket; no other socket, writing, process, thread or signal;
- limits on memory, open files and processor time; the trainer bounds the seconds and the output of a step.
A session is killed when its `Interpreter` ends; zygote and sessions die with the trainer, however it dies.
Not covered: bugs of the kernel; whether a path exists (stat works); covert channels by timing. Elsewhere than
on Linux only `--sandbox off` works: a plain child process that can do whatever its user can.

A session *is* its log of (code, search replies): a fork, and the recovery after a killed step, replay the log
in a new process with the same hash seed, random numbers and replies, so no search is made twice. Only code
that reads the clock, memory addresses or an unseeded `random.Random()` can differ in a replay.
"""
import ast, builtins, ctypes, gc, io, json, linecache, os, platform, random, resource, select, signal, socket
import struct, subprocess, sys, threading, time, traceback, types, weakref
from contextlib import suppress
from typing import NamedTuple

MAX_OUTPUT = 10_000      # characters of an observation or a search reply; the middle of a longer one is cut
MAX_CODE = 60_000        # characters of a step
MAX_ANSWER = 2_000       # characters of a final answer or a search query
MAX_SEARCHES = 20        # in one step
MAX_MESSAGE = 1 << 20    # bytes from a session
CPU_SECONDS = 600        # of a session in all; `Interpreter(seconds=)` is per step
SANDBOX, PRELOAD = "auto", True         # see set_sandbox
LINUX = sys.platform == "linux"

CLEAN_ENV = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/", "PYTHONHASHSEED": "0",
             "PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1", "OPENBLAS_NUM_THREADS": "1"}

# What these import and cache on first use is there for all sessions: a first factor() takes 10 ms, not 100.
WARM_UP = ["""
import asyncio, bisect, calendar, cmath, collections, copy, datetime, decimal, fractions, functools, heapq
import itertools, math, operator, re, secrets, statistics, string, textwrap, uuid, zoneinfo""", """
import numpy as np; np.linalg.solve(np.eye(2) + 1, np.ones(2)); repr(np.ones(3)); np.random.default_rng(0)
""", """
from sympy import *; x, y = symbols("x y"); n = Symbol("n", integer=True); str(sqrt(2)); latex(x / y); acos(x)
solve([x + y - 3, x - y - 1], [x, y]); solve(x**2 - 3*x + 2, x); solve(Eq(x**3, 8), x); solve(x**2 > 4, x)
solve(sqrt(x + 3) - x, x); solve(2**x - 8, x); solve([x**2 + y**2 - 25, x - y - 1], [x, y]); N(pi)
factor(x**3 - 6*x**2 + 11*x - 6); expand((x + y)**4); apart(1 / (x**2 - 1)); Poly(x**3 - 2, x).nroots()
simplify(sin(x)**2 + cos(x)**2); simplify(tan(pi / 8)); diff(sqrt(x) * log(x), x); limit(sin(x) / x, x, 0)
integrate(x * exp(x), x); integrate(1 / (x**2 + 1), (x, 0, oo)); series(exp(x), x, 0, 4)
Matrix([[2, 1], [1, 3]]).eigenvals(); Matrix([[2, 1], [1, 3]]).inv(); Point(0, 0).distance(Point(3, 4))
nsolve(cos(x) - x, 1); factorint(360); isprime(97); binomial(10, 3); summation(n, (n, 1, 9)); lambdify(x, x)(3)"""]

# The system calls a session may make: name, number on x86_64, number on aarch64 (-: it has none).
CALLS = """
read 0 63, readv 19 65, pread64 17 67, write 1 64, writev 20 66, close 3 57, close_range 436 436, lseek 8 62,
dup 32 23, dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59, fstat 5 80, newfstatat 262 79, stat 4 -,
lstat 6 -, statx 332 291, access 21 -, faccessat 269 48, faccessat2 439 439, readlink 89 -, readlinkat 267 78,
getdents64 217 61, getcwd 79 17, chdir 80 49, umask 95 166, poll 7 -, ppoll 271 73, select 23 -,
pselect6 270 72, epoll_create1 291 20, epoll_ctl 233 21, epoll_wait 232 -, epoll_pwait 281 22,
eventfd2 290 19, socketpair 53 199, recvfrom 45 207, getsockname 51 204, getpeername 52 205,
getsockopt 55 209, shutdown 48 210, mmap 9 222, munmap 11 215, mremap 25 216, mprotect 10 226, madvise 28 233,
brk 12 214, futex 202 98, membarrier 324 283, rseq 334 293, set_robust_list 273 99, get_robust_list 274 100,
sched_yield 24 124, sched_getaffinity 204 123, getcpu 309 168, rt_sigaction 13 134, rt_sigprocmask 14 135,
rt_sigreturn 15 139, sigaltstack 131 132, nanosleep 35 101, clock_nanosleep 230 115, clock_gettime 228 113,
clock_getres 229 114, gettimeofday 96 169, time 201 -, times 100 153, getrusage 98 165, sysinfo 99 179,
uname 63 160, getrandom 318 278, getpid 39 172, gettid 186 178, getppid 110 173, getuid 102 174,
geteuid 107 175, getgid 104 176, getegid 108 177, getgroups 115 158, getpgrp 111 -, exit 60 93,
exit_group 231 94, restart_syscall 219 128"""


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


# ---- the zygote ----

def check(result):
    """The result of a C call; its error is raised."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def landlock(libc, readable):
    """From here on only files beneath the `readable` paths can be opened, for reading (Linux >= 5.13)."""
    call = lambda *args: check(libc.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in args]))
    version = call(444, None, 0, 1)                        # landlock_create_ruleset, for its version
    every_right = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF}.get(version, 0xFFFF)
    rules = call(444, struct.pack("Q", every_right), 8, 0)
    for path in filter(os.path.exists, readable):
        fd = os.open(path, os.O_PATH)
        rights = 0b1100 if os.path.isdir(path) else 0b0100                       # READ_DIR, READ_FILE
        call(445, rules, 1, struct.pack("=Qi", rights, fd), 0)                   # landlock_add_rule
        os.close(fd)
    call(446, rules, 0)                                    # landlock_restrict_self
    os.close(rules)


def seccomp_program(may_open):
    """The allow-list as a BPF program (struct sock_filter[]). All other calls fail with EPERM."""
    arm = {"x86_64": 0, "aarch64": 1}[platform.machine()]
    op = lambda code, k, skip_if=0, skip_else=0: struct.pack("HBBI", code, skip_if, skip_else, k)
    load, equal, mask = 0x20, 0x15, 0x54                   # load: from an offset in struct seccomp_data
    allow, deny = op(0x06, 0x7FFF0000), op(0x06, 0x00050001)
    program = [op(load, 4), op(equal, (0xC000003E, 0xC00000B7)[arm], 1, 0), deny, op(load, 0)]
    for call in CALLS.split(","):
        if (number := call.split()[1 + arm]) != "-":
            program += [op(equal, int(number), 0, 1), allow]

    def allow_if(numbers, argument, values, bits=0xFFFFFFFF):
        """Allow a call if its argument (a lower and an upper half), masked, is one of `values`."""
        low = 16 + 8 * argument
        body = [op(load, low + 4), op(equal, 0, 1, 0), deny, op(load, low), op(mask, bits)]
        body += [part for value in values for part in (op(equal, value, 0, 1), allow)] + [deny]
        program.extend([op(equal, numbers[arm], 0, len(body)), *body])

    if may_open:                                           # openat, open; no O_PATH, which Landlock ignores
        not_reading = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_PATH
        allow_if((257, 56), 2, [0], not_reading)
        allow_if((2, 0xFFFFFFFF), 1, [0], not_reading)
    allow_if((72, 25), 1, [0, 1, 2, 3, 4, 1030])           # fcntl: duplicate, flags; not SETOWN: signals
    allow_if((16, 29), 1, [0x5401, 0x5413, 0x5421, 0x5450, 0x5451])    # ioctl: terminal? blocking?
    allow_if((302, 261), 2, [0])                           # prlimit64: no new limits
    allow_if((44, 206), 4, [0])                            # sendto: no address
    return b"".join([*program, deny])


def lock_up():
    """Give up the zygote's rights. -> a function that seals a session; what is missing (list of str)"""
    libc, missing = ctypes.CDLL(None, use_errno=True), []
    check(libc.prctl(38, 1, 0, 0, 0))                      # PR_SET_NO_NEW_PRIVS
    check(libc.prctl(4, 0, 0, 0, 0))                       # PR_SET_DUMPABLE: closes /proc/PID to others
    check(libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)))
    libraries = [path for path in sys.path if path.endswith("-packages")]
    libraries += [os.path.dirname(os.__file__), sys.base_prefix + "/lib", "/usr/lib", "/lib", "/lib64"]
    try:
        landlock(libc, libraries + ["/usr/share/zoneinfo", "/dev/null", "/dev/urandom"])
    except OSError as error:
        missing.append(f"no Landlock ({error}): model code can open no file, import only what is preloaded")
    try:
        program = seccomp_program(may_open=not missing)
    except KeyError:
        program = b""                                      # unknown machine: seal() will fail

    def seal():
        code = ctypes.create_string_buffer(program, len(program))
        check(libc.prctl(22, 2, struct.pack("HP", len(program) // 8, ctypes.addressof(code)), 0, 0))

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)          # the trainer may ignore it, then waitpid fails
    if not (pid := os.fork()):                             # try it: what works in a sealed process?
        works = 0
        for bit, action in (1, seal), (2, socket.socket), (4, os.fork), (8, lambda: os.listdir("/")):
            with suppress(OSError):
                action()
                works |= bit
        os._exit(works)
    works = os.waitpid(pid, 0)[1] >> 8
    if works & 7 != 1:
        missing.append("no seccomp: model code can use the network and start processes")
    if works & 8:
        missing.append("files are not protected: model code can read whatever this user can")
    return seal if works & 1 else lambda: None, missing


def zygote(control, mode, preload):
    """Get ready, tell if all layers are there, then fork a session for each socket that arrives."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if path not in ("", here)]          # nothing beside this file
    for code in WARM_UP if preload else WARM_UP[:1]:
        try:
            exec(code, {})
        except ImportError as error:
            print(f"sandbox: {error}; model code will miss it", file=sys.stderr)
    loaded, watched = 0, [control.fileno()]
    if LINUX:
        watched.append(os.pidfd_open(os.getppid()))        # `control` may live on in a fork of the trainer
        with open("/proc/self/statm") as file:
            loaded = int(file.read().split()[0]) * resource.getpagesize()
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")                             # out of memory: a session goes, not the trainer
    off = ["--sandbox off: model code can read, write, connect to and start whatever this user can"]
    seal, missing = (lambda: None, off) if mode == "off" else lock_up()
    for line in missing:
        print("sandbox:", line, file=sys.stderr, flush=True)
    control.sendall(b"-" if missing else b"+")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)          # no zombies
    gc.collect()
    gc.freeze()                                            # these pages stay shared with the sessions
    while select.select(watched, [], [])[0] == watched[:1]:
        memory, fds, *_ = socket.recv_fds(control, 16, 1)
        if not memory:
            break
        if not os.fork():
            try:
                for fd in watched:
                    os.close(fd)
                session(socket.socket(fileno=fds[0]), int(memory), loaded, seal)
            finally:
                os._exit(1)
        os.close(fds[0])
    os._exit(0)


# ---- a session: the process that runs model code ----

class Output(io.TextIOBase):
    """What was printed: the first and last MAX_OUTPUT / 2 characters, and the count of those between."""
    encoding = "utf-8"

    def __init__(self):
        self.head, self.tail, self.total = [], "", 0

    def write(self, text):
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        half = MAX_OUTPUT // 2
        room = max(half - self.total, 0)
        if room:
            self.head.append(text[:room])
        self.tail = (self.tail + text[max(room, len(text) - half):])[-half:]
        self.total += len(text)
        return len(text)

    def text(self):
        cut = self.total - MAX_OUTPUT // 2 - len(self.tail)
        return "".join(self.head) + (f"\n... [{cut} characters cut] ...\n" if cut > 0 else "") + self.tail


def execute(code, name, scope):
    """Run a step. Shown are, as in a notebook, the value of a last expression; also bare web_search(...)."""
    linecache.cache[name] = (len(code), None, code.splitlines(True), name)       # tracebacks quote the line
    tree = compile(code, name, "exec", ast.PyCF_ONLY_AST)
    for node in (node for node in tree.body if isinstance(node, ast.Expr)):
        searches = isinstance(node.value, ast.Call) and getattr(node.value.func, "id", None) == "web_search"
        if searches or node is tree.body[-1]:
            show = ast.Call(ast.Name("__show__", ast.Load()), [node.value], [])
            node.value = ast.copy_location(show, node.value)
    exec(compile(ast.fix_missing_locations(tree), name, "exec"), scope)


def describe(error, memory):
    """A traceback: the innermost six lines of model code, without library code; a hint if a limit was met."""
    report = traceback.TracebackException(type(error), error, error.__traceback__, limit=-100)
    report.stack[:] = [frame for frame in report.stack if frame.filename.startswith("<step ")][-6:]
    text = "".join(report.format(chain=False))
    if isinstance(error, MemoryError):
        bytes(memory >> 3)                                 # nearly full: die here, the state is restored
        text += f"(The interpreter has {memory >> 20} MiB of memory.)\n"
    if isinstance(error, PermissionError) or "start new thread" in text:
        text += "(The interpreter has no files, network, processes or threads.)\n"
    return text


def session(sock, memory, loaded, seal):
    """Serve the steps of one `Interpreter`, a JSON line each way. Forging one hurts only this session."""
    if LINUX:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)                # PR_SET_PDEATHSIG: of the zygote
    limits = {"AS": loaded + memory, "CORE": 0, "FSIZE": 0, "NPROC": 0, "NOFILE": 256, "CPU": CPU_SECONDS}
    for name, limit in limits.items():
        with suppress(ValueError, OSError):
            resource.setrlimit(getattr(resource, "RLIMIT_" + name), (limit, limit))
    os.dup2(1, 2)                                          # /dev/null instead of the trainer's stderr
    random.seed(0)                                         # a replay must draw the same numbers ...
    os.urandom = random._urandom = random.Random(0).randbytes              # ... also in secrets, default_rng
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    sys.modules["__main__"], sys.argv = types.ModuleType("__main__"), [""]
    scope, answers, found, lines = vars(sys.modules["__main__"]), [], set(), sock.makefile("rb")
    send = lambda message: sock.sendall(json.dumps(message).encode() + b"\n")

    def web_search(query):
        """Search the web. -> the text of the results"""
        if replies is None:
            send({"key": key, "search": str(query)[:MAX_ANSWER]})
        reply = json.loads(lines.readline()) if replies is None else replies.pop(0)
        found.add(reply)
        return reply

    def final_answer_print(answer):
        """Print the answer, and end the task with it."""
        answers.append(str(answer)[:MAX_ANSWER])
        print(answer)

    def show(value):
        if value is not None:
            out.write((value if type(value) is str and value in found else repr(value)) + "\n")

    send(os.getpid())
    seal()                                                 # from here on nothing in this process is trusted
    for line in lines:
        key, steps = json.loads(line)
        for name, code, replies in steps:                  # replies: the recorded ones; None in a new step
            sys.stdout = sys.stderr = out = Output()
            error, builtins.__show__ = False, show
            answers.clear()
            scope.update(web_search=web_search, final_answer_print=final_answer_print, __builtins__=builtins)
            try:
                execute(code, name, scope)
            except BaseException as exception:
                error = True
                out.write(describe(exception, memory))
        send({"key": key, "text": out.text(), "answer": answers[-1] if answers else None, "error": error})


# ---- the trainer's side ----

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
        command = [sys.executable, os.path.abspath(__file__), str(child.fileno()), SANDBOX,
                   "preload" if PRELOAD else ""]
        self.process = subprocess.Popen(
            command, env=CLEAN_ENV | inherited, cwd="/", pass_fds=[child.fileno()], start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
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
        """-> a socket to a new session, and its process (a pidfd on Linux: a number may be reused)."""
        ours, theirs = socket.socketpair()
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self.start()
            with suppress(OSError):
                socket.send_fds(self.control, [b"%16d" % memory], [theirs.fileno()])
        theirs.close()
        try:
            pid = receive(ours, time.monotonic() + 60)
            return ours, os.pidfd_open(pid) if LINUX else pid
        except OSError:
            raise Killed("The interpreter could not start.") from None


ZYGOTE = Zygote()
os.register_at_fork(after_in_child=ZYGOTE.forget)


def receive(sock, deadline):
    """One JSON line of a session, which may send anything at any pace."""
    line = b""
    while not line.endswith(b"\n"):
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        chunk = sock.recv(1 << 16)
        line += chunk
        if not chunk or len(line) > MAX_MESSAGE:
            raise ConnectionError
    return json.loads(line)


def kill(sock, process, owner):
    """End a session at once; a fork of the trainer only lets go of it."""
    with suppress(ProcessLookupError):
        if os.getpid() == owner:
            signal.pidfd_send_signal(process, signal.SIGKILL) if LINUX else os.kill(process, signal.SIGKILL)
    sock.close()
    if LINUX:
        os.close(process)


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
        sock, process = ZYGOTE.session(self.memory)
        self.sock, self.end = sock, weakref.finalize(self, kill, sock, process, os.getpid())
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
                    start = time.monotonic()
                    self.sock.settimeout(seconds)
                    self.sock.sendall(json.dumps(message).encode() + b"\n")
                    reply = receive(self.sock, start + seconds)
                    seconds = max(seconds - time.monotonic() + start, 0.001)
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


if __name__ == "__main__":                                 # the zygote
    zygote(socket.socket(fileno=int(sys.argv[1])), sys.argv[2], sys.argv[3])
