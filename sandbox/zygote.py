"""The zygote: a process that warms up libraries, gives up its rights and forks the sessions (session.py).

The trainer (interpreter.py) runs this file with a clean environment, as `zygote.py MODE PRELOAD`. The zygote
runs no model code. It always has one session forked and waiting.
"""
import ctypes
import errno
import gc
import json
import os
import platform
import resource
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress

# This folder is on the path only for this import, and the module's name is forgotten after it: model code can
# import nothing of this folder.
FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, FOLDER)
import session  # noqa: E402

sys.path[:] = [path for path in sys.path if path not in ("", FOLDER)]
del sys.modules["session"]

# What these import and cache on first use is there for all sessions: a first factor() takes 10 ms, not 100.
WARM_STANDARD_LIBRARY = """
import asyncio, bisect, calendar, cmath, collections, copy, datetime, decimal, fractions, functools, heapq
import itertools, math, operator, re, secrets, statistics, string, textwrap, uuid, zoneinfo
"""
WARM_NUMPY = """
import numpy as np; np.linalg.solve(np.eye(2) + 1, np.ones(2)); repr(np.ones(3)); np.random.default_rng(0)
"""
WARM_SYMPY = """
from sympy import *; x, y = symbols("x y"); n = Symbol("n", integer=True); str(sqrt(2)); latex(x / y); acos(x)
solve([x + y - 3, x - y - 1], [x, y]); solve(x**2 - 3*x + 2, x); solve(Eq(x**3, 8), x); solve(x**2 > 4, x)
solve(sqrt(x + 3) - x, x); solve(2**x - 8, x); solve([x**2 + y**2 - 25, x - y - 1], [x, y]); N(pi)
factor(x**3 - 6*x**2 + 11*x - 6); expand((x + y)**4); apart(1 / (x**2 - 1)); Poly(x**3 - 2, x).nroots()
simplify(sin(x)**2 + cos(x)**2); simplify(tan(pi / 8)); diff(sqrt(x) * log(x), x); limit(sin(x) / x, x, 0)
integrate(x * exp(x), x); integrate(1 / (x**2 + 1), (x, 0, oo)); series(exp(x), x, 0, 4)
Matrix([[2, 1], [1, 3]]).eigenvals(); Matrix([[2, 1], [1, 3]]).inv(); Point(0, 0).distance(Point(3, 4))
nsolve(cos(x) - x, 1); factorint(360); isprime(97); binomial(10, 3); summation(n, (n, 1, 9))
lambdify(x, x)(3)
"""

# The system calls a session may make: name, number on x86_64, number on aarch64 (-: it has none).
CALLS = """
read 0 63, readv 19 65, pread64 17 67, write 1 64, writev 20 66, close 3 57, close_range 436 436, lseek 8 62,
dup 32 23, dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59, fstat 5 80, newfstatat 262 79, stat 4 -,
lstat 6 -, statx 332 291, access 21 -, faccessat 269 48, faccessat2 439 439, readlink 89 -, readlinkat 267 78,
getdents64 217 61, getcwd 79 17, chdir 80 49, umask 95 166, poll 7 -, ppoll 271 73, select 23 -,
pselect6 270 72, epoll_create1 291 20, epoll_ctl 233 21, epoll_wait 232 -, epoll_pwait 281 22,
eventfd2 290 19, recvfrom 45 207, getsockname 51 204, getpeername 52 205,
getsockopt 55 209, shutdown 48 210, mmap 9 222, munmap 11 215, mremap 25 216, mprotect 10 226, madvise 28 233,
brk 12 214, futex 202 98, membarrier 324 283, rseq 334 293,
sched_yield 24 124, sched_getaffinity 204 123, getcpu 309 168, rt_sigaction 13 134, rt_sigprocmask 14 135,
rt_sigreturn 15 139, sigaltstack 131 132, nanosleep 35 101, clock_nanosleep 230 115, clock_gettime 228 113,
clock_getres 229 114, gettimeofday 96 169, time 201 -, times 100 153, getrusage 98 165, sysinfo 99 179,
uname 63 160, getrandom 318 278, getpid 39 172, gettid 186 178, getppid 110 173, getuid 102 174,
geteuid 107 175, getgid 104 176, getegid 108 177, getgroups 115 158, getpgrp 111 -, exit 60 93,
exit_group 231 94, restart_syscall 219 128"""

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}      # machines, as seccomp names them


# ---- Landlock: which files can be opened ----

def check(result: int) -> int:
    """The result of a C call; its error is raised."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def call(libc: ctypes.CDLL, number: int, *arguments: int | bytes | None) -> int:
    """A system call that libc has no function for; its number is the same on all machines."""
    # As a plain int, ctypes would pass only 32 bits.
    return check(libc.syscall(*map(ctypes.c_void_p.from_param, [number, *arguments])))


def landlock(libc: ctypes.CDLL, readable: list[str]) -> None:
    """From here on only files beneath the `readable` paths can be opened, for reading (Linux >= 5.13)."""
    version = call(libc, 444, None, 0, 1)                  # landlock_create_ruleset: 1 asks for its version
    # One bit a right. Each version knows more; what is in this set is forbidden, unless a rule allows it.
    every_right = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF}.get(version, 0xFFFF)
    rules = call(libc, 444, struct.pack("Q", every_right), 8, 0)
    for path in filter(os.path.exists, readable):
        rights = 0b0100                                    # READ_FILE
        if os.path.isdir(path):
            rights |= 0b1000                               # READ_DIR
        fd = os.open(path, os.O_PATH)
        call(libc, 445, rules, 1, struct.pack("=Qi", rights, fd), 0)   # landlock_add_rule: 1 is PATH_BENEATH
        os.close(fd)
    call(libc, 446, rules, 0)                              # landlock_restrict_self
    os.close(rules)


# ---- seccomp: which system calls can be made ----
#
# The kernel runs a small BPF program at every system call. It sees struct seccomp_data: the number of the
# call at byte 0, the machine at byte 4, from byte 16 on six arguments of 8 bytes, the lower half first. It
# has one register of 32 bits. Its last instruction says whether the call is made or fails.

LOAD = 0x20              # BPF_LD | BPF_W | BPF_ABS: register = the 4 bytes at `value`
AND = 0x54               # BPF_ALU | BPF_AND | BPF_K: register &= `value`
IF_EQUAL = 0x15          # BPF_JMP | BPF_JEQ | BPF_K: skip instructions, depending on register == `value`
RETURN = 0x06            # BPF_RET | BPF_K


def instruction(code: int, value: int, skip_if: int = 0, skip_else: int = 0) -> bytes:
    """A struct sock_filter. IF_EQUAL skips so many instructions if it is equal, or if it is not."""
    return struct.pack("HBBI", code, skip_if, skip_else, value)


ALLOW = instruction(RETURN, 0x7FFF0000)                    # SECCOMP_RET_ALLOW
DENY = instruction(RETURN, 0x00050000 | errno.EPERM)       # SECCOMP_RET_ERRNO


def allow_if(number: int, argument: int, values: list[int], mask: int = 0xFFFFFFFF) -> list[bytes]:
    """Allow the call `number`, to be met in the register, if its argument & mask is one of these values."""
    lower_half = 16 + 8 * argument
    upper_half = lower_half + 4                            # must be 0
    body = [instruction(LOAD, upper_half), instruction(IF_EQUAL, 0, skip_if=1), DENY,
            instruction(LOAD, lower_half), instruction(AND, mask)]
    for value in values:
        body += [instruction(IF_EQUAL, value, skip_else=1), ALLOW]
    body.append(DENY)
    return [instruction(IF_EQUAL, number, skip_else=len(body)), *body]


def seccomp_program(may_open: bool) -> bytes:
    """The allow-list, for the machines in AUDIT_ARCH. All other calls fail with EPERM."""
    machine = platform.machine()
    column = list(AUDIT_ARCH).index(machine)
    program = [instruction(LOAD, 4), instruction(IF_EQUAL, AUDIT_ARCH[machine], skip_if=1), DENY,
               instruction(LOAD, 0)]
    for line in CALLS.split(","):
        number = line.split()[1 + column]
        if number != "-":
            program += [instruction(IF_EQUAL, int(number), skip_else=1), ALLOW]
    if may_open:                                           # openat, open: for reading
        not_reading = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        not_reading |= os.O_PATH                           # which Landlock ignores
        program += allow_if((257, 56)[column], 2, [0], not_reading)
        if machine == "x86_64":                            # aarch64 has no open
            program += allow_if(2, 1, [0], not_reading)
    # fcntl: F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC; not F_SETOWN, which sends signals
    program += allow_if((72, 25)[column], 1, [0, 1, 2, 3, 4, 1030])
    # ioctl: TCGETS, TIOCGWINSZ, FIONBIO, FIONCLEX, FIOCLEX
    program += allow_if((16, 29)[column], 1, [0x5401, 0x5413, 0x5421, 0x5450, 0x5451])
    program += allow_if((302, 261)[column], 2, [0])        # prlimit64: no new limits
    program += allow_if((44, 206)[column], 4, [0])         # sendto: no address
    program += allow_if((53, 199)[column], 0, [1])         # socketpair: AF_UNIX
    return b"".join([*program, DENY])


# ---- giving up all rights ----

def can_seal(seal: Callable[[], None]) -> bool:
    """Seal another process; it must then fail to list a folder, make a socket and fork."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)          # the trainer may ignore it, and then waitpid fails
    pid = os.fork()
    if pid == 0:
        refused = 0
        with suppress(OSError):
            seal()
            for attempt in lambda: os.open("/", os.O_RDONLY), socket.socket, os.fork:
                try:
                    attempt()
                except PermissionError:
                    refused += 1
        os._exit(refused)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


def lock_up() -> tuple[Callable[[], None] | None, dict[str, str]]:
    """Give up the zygote's rights. -> a function that seals a session, if that works; the missing layers"""
    libc = ctypes.CDLL(None, use_errno=True)
    missing = {}
    check(libc.prctl(38, 1, 0, 0, 0))                      # PR_SET_NO_NEW_PRIVS
    check(libc.prctl(4, 0, 0, 0, 0))                       # PR_SET_DUMPABLE: closes /proc/PID to others
    check(libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)))    # version 3: no capabilities
    readable = [path for path in sys.path if path.endswith("-packages")]
    readable += [os.path.dirname(os.__file__), sys.base_prefix + "/lib", "/usr/lib", "/lib", "/lib64"]
    readable += ["/usr/share/zoneinfo", "/dev/null", "/dev/urandom"]
    try:
        landlock(libc, readable)
    except OSError as error:
        missing["Landlock"] = f"no Landlock ({error}): model code can open no file and import little"
    program = b""                                          # empty on an unknown machine: seal() fails
    if platform.machine() in AUDIT_ARCH:
        program = seccomp_program(may_open=not missing)

    def seal() -> None:
        code = ctypes.create_string_buffer(program, len(program))
        filter_program = struct.pack("HP", len(program) // 8, ctypes.addressof(code))    # struct sock_fprog
        check(libc.prctl(22, 2, filter_program, 0, 0))     # PR_SET_SECCOMP, SECCOMP_MODE_FILTER

    if can_seal(seal):
        return seal, missing
    if missing:
        missing["files"] = "files are not protected: model code can read and write whatever this user can"
    missing["seccomp"] = ("no seccomp: model code can use the network, send signals and start processes "
                          "(--sandbox without-seccomp accepts that)")
    return None, missing


# ---- the process ----

def hand_out_sessions(control: socket.socket, watched: list[int], loaded: int,
                      seal: Callable[[], None] | None) -> None:
    """Fork a session, wait for a byte of the trainer, send its process id and socket; and so on.

    watched: file descriptors that become readable when the trainer asks or is gone. The rest: session.serve.
    """
    while True:
        ours, theirs = socket.socketpair()
        pid = -1                                           # no process or memory; perhaps the next time
        with suppress(OSError):
            pid = os.fork()
        if pid == 0:
            try:
                for fd in watched:
                    os.close(fd)
                ours.close()
                session.serve(theirs, loaded, seal)
            finally:
                os._exit(1)
        theirs.close()
        ready = select.select(watched, [], [])[0]
        if ready != [control.fileno()] or not control.recv(1):
            os._exit(0)                                    # the trainer is gone; the sessions follow
        socket.send_fds(control, [b"%d" % pid], [ours.fileno()])
        ours.close()


def main(mode: str, preload: str) -> None:
    """Get ready, tell which layers are missing, then serve the trainer through stdin, a socket."""
    control = socket.socket(fileno=os.dup(0))
    os.dup2(1, 0)                                          # /dev/null
    session.adapt_libraries()
    libraries = [WARM_NUMPY, WARM_SYMPY] if preload else []
    for code in [WARM_STANDARD_LIBRARY, *libraries]:       # imported, with their caches filled
        try:
            exec(code, {})
        except ImportError as error:
            print(f"sandbox: {error}; model code will miss it", file=sys.stderr)
    loaded = 1 << 30                                       # bytes of address space; a guess if not known
    with suppress(OSError), open("/proc/self/statm") as file:
        loaded = int(file.read().split()[0]) * resource.getpagesize()
    watched = [control.fileno()]
    if session.LINUX:
        watched.append(os.pidfd_open(os.getppid()))        # `control` may live on in a fork of the trainer
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")                             # out of memory: a session goes, not the trainer
    if mode == "off":
        seal = None
        missing = {"all": "--sandbox off: model code can do whatever this user can"}
    else:
        seal, missing = lock_up()
    control.sendall(json.dumps(missing).encode() + b"\n")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)          # no zombies
    gc.collect()
    gc.freeze()                                            # these pages stay shared with the sessions
    hand_out_sessions(control, watched, loaded, seal)


if __name__ == "__main__":
    main(*sys.argv[1:])
