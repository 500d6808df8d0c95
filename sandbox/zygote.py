"""The far side of the sandbox (see sandbox.py): the zygote, and the sealed sessions that it forks.

The zygote is this file, exec'd with a clean environment. It imports and warms numpy and sympy, gives up its
rights and always has one session forked and waiting; it runs no model code. A session serves the steps of one
`Interpreter`. What the kernel refuses stays refused; what honest code needs of that is imitated in the
session, without any right: files in a scratch folder (in memory), threads (one after the other).
"""
import ast
import builtins
import concurrent.futures.thread
import ctypes
import gc
import io
import json
import linecache
import os
import platform
import random
import resource
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
import traceback
import types
from contextlib import suppress

MAX_OUTPUT = 10_000      # characters of an observation or a search reply; the middle of a longer one is cut
MAX_ANSWER = 2_000       # characters of a final answer or a search query
CPU_SECONDS = 600        # of a session in all; `Interpreter(seconds=)` is per step
LINUX = sys.platform == "linux"

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
nsolve(cos(x) - x, 1); factorint(360); isprime(97); binomial(10, 3); summation(n, (n, 1, 9))
lambdify(x, x)(3)"""]

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


def zygote(mode, preload):
    """Get ready, tell if all layers are there, then hand out a session for each byte that stdin brings."""
    control = socket.socket(fileno=os.dup(0))
    os.dup2(1, 0)                                          # /dev/null
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if path not in ("", here)]          # nothing beside this file
    imitate_files()
    imitate_threads()
    for code in WARM_UP if preload else WARM_UP[:1]:
        try:
            exec(code, {})
        except ImportError as error:
            print(f"sandbox: {error}; model code will miss it", file=sys.stderr)
    loaded, watched = 1 << 30, [control.fileno()]
    if LINUX:
        watched.append(os.pidfd_open(os.getppid()))        # `control` may live on in a fork of the trainer
        with suppress(OSError), open("/proc/self/statm") as file:
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
    while True:
        ours, theirs = socket.socketpair()
        try:
            pid = os.fork()
        except OSError:                                    # no process or memory; perhaps the next time
            pid = -1
        if not pid:
            try:
                for fd in *watched, ours.detach():
                    os.close(fd)
                session(theirs, loaded, seal)
            finally:
                os._exit(1)
        theirs.close()
        if select.select(watched, [], [])[0] != watched[:1] or not control.recv(1):
            os._exit(0)                                    # the trainer is gone; the sessions follow
        socket.send_fds(control, [b"%d" % pid], [ours.fileno()])
        ours.close()


# ---- a session: the process that runs model code ----

class Output(io.TextIOBase):
    """What was printed: the first and last MAX_OUTPUT / 2 characters, and the count of those between."""
    encoding, reconfigure = "utf-8", lambda self, **options: None

    def __init__(self):
        self.clear()

    def clear(self):
        vars(self).clear()                                 # also what model code put there
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


class File(io.BytesIO):
    """An open file of the scratch folder: what was written is kept on flush and on close."""

    def __init__(self, files, name, mode):
        super().__init__(b"" if "w" in mode else files.get(name, b""))
        self.files, self.name, self.mode = files, name, mode
        self.seek(0, 2 if "a" in mode else 0)
        self.flush()

    def readable(self):
        return bool({*self.mode} & {*"r+"})

    def writable(self):
        return bool({*self.mode} & {*"wax+"})

    def flush(self):
        if not self.closed and self.writable():
            self.files[self.name] = self.getvalue()

    def close(self):
        self.flush()
        super().close()


def imitate_files(folder="/scratch"):
    """Give open() and common functions of os a current folder that exists only in this process's memory.

    Nothing is written anywhere. All other paths go to the real functions, to be refused by the kernel or not.
    """
    files, folders, real = {}, {folder}, types.SimpleNamespace(**vars(os))
    real.open = io.open

    def find(path):
        """The absolute path if it is in the scratch folder, else None."""
        path = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else "/"
        path = os.path.normpath(os.path.join(folder, path))
        return path if path == folder or path.startswith(folder + "/") else None

    def expect(kind, path, condition):
        if not condition:
            number = {FileNotFoundError: 2, FileExistsError: 17, IsADirectoryError: 21}[kind]
            raise kind(number, os.strerror(number), path)

    def imitate_open(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True,
                     opener=None):
        name = find(file)
        if name is None or opener or not {*mode} <= {*"rwxabt+"} or len({*mode} & {*"rwxa"}) != 1:
            return real.open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        expect(IsADirectoryError, file, name not in folders)
        expect(FileExistsError, file, "x" not in mode or name not in files)
        expect(FileNotFoundError, file, name in files if "r" in mode else os.path.dirname(name) in folders)
        raw = File(files, name, mode)
        return raw if "b" in mode else io.TextIOWrapper(raw, encoding or "utf-8", errors, newline)

    def stat(path, **options):
        if (name := find(path)) is None:
            return real.stat(path, **options)
        expect(FileNotFoundError, path, name in files or name in folders)
        kind, size = (0o100644, len(files[name])) if name in files else (0o40755, 0)
        return os.stat_result((kind, 0, 0, 1, 0, 0, size, 0, 0, 0))

    def listdir(path="."):
        if (name := find(path)) is None:
            return real.listdir(path)
        expect(FileNotFoundError, path, name in folders)
        return [os.path.basename(p) for p in [*folders, *files] if os.path.dirname(p) == name]

    def remove(path, **options):
        if (name := find(path)) is None:
            return real.remove(path, **options)
        expect(FileNotFoundError, path, name in files)
        del files[name]

    def replace(source, target, **options):
        if (name := find(source)) is None or (new := find(target)) is None:
            return real.replace(source, target, **options)
        expect(FileNotFoundError, source, name in files and os.path.dirname(new) in folders)
        files[new] = files.pop(name)

    def mkdir(path, mode=0o777, **options):
        if (name := find(path)) is None:
            return real.mkdir(path, mode, **options)
        expect(FileExistsError, path, name not in files and name not in folders)
        expect(FileNotFoundError, path, os.path.dirname(name) in folders)
        folders.add(name)

    def temporary(mode="w+b", buffering=-1, encoding=None, newline=None, suffix=None, *_, **__):
        return imitate_open(f"{folder}/tmp{len(files)}{suffix or ''}", mode, -1, encoding, None, newline)

    builtins.open = io.open = imitate_open
    os.stat = os.lstat = stat
    os.listdir, os.remove, os.unlink, os.mkdir = listdir, remove, remove, mkdir
    os.rename, os.replace, os.getcwd = replace, replace, lambda: folder
    tempfile.tempdir, tempfile.NamedTemporaryFile, tempfile.TemporaryFile = folder, temporary, temporary


def imitate_threads():
    """Let threads and pools do their work at once, in their order: the same in every replay."""
    def start(thread):
        thread._started.set()
        try:
            thread.run()
        except BaseException as error:
            print(f"Exception in thread {thread.name}:\n" + describe(error), file=sys.stderr)

    def submit(executor, function, /, *args, **kwargs):
        future = concurrent.futures.Future()
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future

    threading.Thread.start, threading.Thread.join = start, lambda thread, timeout=None: None
    threading.Thread.is_alive = lambda thread: False
    concurrent.futures.ThreadPoolExecutor.submit = submit
    concurrent.futures.ProcessPoolExecutor = concurrent.futures.ThreadPoolExecutor


def execute(code, name, scope):
    """Run a step. Shown are, as in a notebook, the value of a last expression; also bare web_search(...)."""
    linecache.cache[name] = (len(code), None, code.splitlines(True), name)       # tracebacks quote the line
    tree = compile(code, name, "exec", ast.PyCF_ONLY_AST)
    for node in (node for node in tree.body if isinstance(node, ast.Expr)):
        searches = isinstance(node.value, ast.Call) and getattr(node.value.func, "id", None) == "web_search"
        if searches or node is tree.body[-1]:
            show = ast.Call(ast.Name("<show>", ast.Load()), [node.value], [])
            node.value = ast.copy_location(show, node.value)
    exec(compile(ast.fix_missing_locations(tree), name, "exec"), scope)


def describe(error):
    """A traceback: the innermost six lines of model code, without library code; a hint if a limit was met."""
    report = traceback.TracebackException(type(error), error, error.__traceback__, limit=-100)
    report.stack[:] = [frame for frame in report.stack if frame.filename.startswith("<step ")][-6:]
    text = "".join(report.format(chain=False))
    if isinstance(error, PermissionError) or "start new thread" in text:
        text += "(The interpreter has no network and no processes, and files only in its current folder.)\n"
    if isinstance(error, EOFError):
        text += "(Nobody answers input() here.)\n"
    return text


def session(sock, loaded, seal):
    """Serve the steps of one `Interpreter`, a JSON line each way. Forging one hurts only this session."""
    if LINUX:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)                # PR_SET_PDEATHSIG: of the zygote
    os.dup2(1, 2)                                          # /dev/null instead of the trainer's stderr
    # A replay must draw the same numbers, also in secrets, default_rng() and unseeded generators.
    os.urandom, seed = random.Random(0).randbytes, random.Random.seed
    random._urandom = os.urandom
    random.Random.seed = lambda self, a=None, *v: seed(self, os.urandom(16) if a is None else a, *v)
    random.seed = random._inst.seed
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    sys.argv, sys.stdin, sys.modules["builtins"] = [""], io.StringIO(), types.ModuleType("builtins")
    names = vars(sys.modules["builtins"])                  # patched, they are patched for model code only
    names.update(vars(builtins))
    main, answers, found, lines, out = types.ModuleType("__main__"), [], set(), sock.makefile("rb"), Output()
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

    memory = json.loads(lines.readline() or sys.exit())    # a session waits here until it is needed
    limits = {"AS": loaded + memory, "CORE": 0, "FSIZE": 0, "NPROC": 0, "NOFILE": 256, "CPU": CPU_SECONDS}
    for name, limit in limits.items():
        with suppress(ValueError, OSError):
            resource.setrlimit(getattr(resource, "RLIMIT_" + name), (limit, limit))
    seal()                                                 # from here on nothing in this process is trusted
    for line in lines:
        key, steps = json.loads(line)
        for name, code, replies in steps:                  # replies: the recorded ones; None in a new step
            out.clear()
            answers.clear()
            sys.stdout, sys.stderr, sys.modules["__main__"], error = out, out, main, False
            names["<show>"], main.__name__, main.__builtins__ = show, "__main__", names
            main.web_search, main.final_answer_print = web_search, final_answer_print
            try:
                execute(code, name, vars(main))
            except BaseException as exception:
                error = True
                out.write("\n" * (out.text()[-1:] not in ("", "\n")) + describe(exception))
                if isinstance(exception, MemoryError):
                    bytes(memory >> 3)                     # nearly full: die here, the state is restored
                    out.write(f"(The interpreter has {memory >> 20} MiB of memory.)\n")
        send({"key": key, "text": out.text(), "answer": answers[-1] if answers else None, "error": error})


if __name__ == "__main__":
    zygote(*sys.argv[1:])
