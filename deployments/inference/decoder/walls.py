"""What a decoder may not do, whatever an input has made of it.

    child:  no core files, no files written, few descriptors, so much memory ─▶ no network ─▶ no file, no way back
    fork:   ends with its child, no processes, so many seconds ─▶ no system call but those that decoding needs

Limits hold on every POSIX system. The rest is Linux's, and there is none of it in some containers: what cannot be had
is told, and does not keep a decoder from its work. The processes of root may be as many as they like for
``RLIMIT_NPROC``; the list of system calls holds for root, too.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import platform
import resource
import signal
import struct
import sys

DESCRIPTORS = 8

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
_LANDLOCK_VERSION = 1
_FILES_BY_VERSION = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}
"""The bits of what Landlock can keep from a process, as they became known."""

_TCP_FROM, _TCP = 4, 0b11
_SCOPES_FROM, _SCOPES = 6, 0b11  # sockets of other processes by name, and signals to them
_REFUSED = 0x00050000 | 1  # SCMP_ACT_ERRNO(EPERM)
_ALLOWED = 0x7FFF0000

CALLS = (
    *("read", "write", "readv", "writev", "close", "lseek", "fstat", "newfstatat"),
    *("mmap", "munmap", "mremap", "mprotect", "madvise", "brk", "sysinfo"),
    *("futex", "membarrier", "rseq", "set_robust_list", "sched_yield", "sched_getaffinity"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall"),
    *("clock_gettime", "clock_nanosleep", "gettimeofday", "getrandom"),
    *("getpid", "gettid", "getrusage", "getrlimit", "exit", "exit_group"),
)
"""What a fork may ask of Linux. It has its pipes and its memory, and asks for nothing else."""

_libc = ctypes.CDLL(None, use_errno=True)


def end_with(parent: int) -> None:
    """Be killed when the parent ends, however it does. Without Linux, the end of the pipe is what tells.

    Raises:
        SystemExit: It has ended already.
    """
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit("the parent has ended")


def around_child(memory_bytes: int) -> list[str]:
    """Put up what forks inherit. Must be called before any byte of a caller is read; returns what could not be had."""
    limits = {
        "RLIMIT_CORE": 0,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_NOFILE": DESCRIPTORS,
        "RLIMIT_AS": memory_bytes,
    }
    missing = [name for name, value in limits.items() if not _limit(name, value, value)]
    if sys.platform != "linux":
        return [*missing, "walls that only Linux has"]
    walls = {"no new privileges": _no_new_privileges, "own network": _leave_network, "Landlock": _leave_files}
    return missing + [name for name, put_up in walls.items() if not put_up()]


def around_fork(seconds: int) -> list[str]:
    """Put up what a child cannot have, for it makes forks and lives on. Returns what could not be had.

    Args:
        seconds: How long a fork may compute. Linux kills at the hard limit, and tells why at the soft one.
    """
    limits = {"RLIMIT_NPROC": (0, 0), "RLIMIT_CPU": (seconds, seconds + 1)}
    missing = [name for name, (soft, hard) in limits.items() if not _limit(name, soft, hard)]
    if sys.platform != "linux":
        return missing
    return missing if _refuse_calls() else [*missing, "seccomp"]


def sacrifice() -> None:
    """Where memory runs out, let Linux end this process first, and not the one that holds a GPU."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:  # there is no such thing here
        pass


def _limit(name: str, soft: int, hard: int) -> bool:
    try:
        resource.setrlimit(getattr(resource, name), (soft, hard))
    except (AttributeError, OSError, ValueError):
        return False
    return True


def _no_new_privileges() -> bool:
    return bool(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0)


def _leave_network() -> bool:
    """Have a network of one's own, with nothing in it."""
    return bool(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0)


def _leave_files() -> bool:
    """Open no file any more, connect to nothing, and reach no process outside. What is open stays open."""
    version = _libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION)
    if version < 1:
        return False
    files = _FILES_BY_VERSION[min(version, max(_FILES_BY_VERSION))]
    tcp, scopes = _TCP if version >= _TCP_FROM else 0, _SCOPES if version >= _SCOPES_FROM else 0
    fields = [files] + [tcp] * (version >= _TCP_FROM) + [scopes] * (version >= _SCOPES_FROM)
    rules = struct.pack(f"{len(fields)}Q", *fields)
    ruleset = _libc.syscall(_LANDLOCK_CREATE_RULESET, rules, len(rules), 0)
    if ruleset < 0:
        return False
    try:
        return bool(_libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def find_seccomp() -> ctypes.CDLL | None:
    """libseccomp, if it is here. Found before the walls stand, for it is a file."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        return None
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError:
        return None
    library.seccomp_init.restype = ctypes.c_void_p
    for function in (library.seccomp_load, library.seccomp_release):
        function.argtypes = [ctypes.c_void_p]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_void_p,
    ]
    return library


_seccomp = find_seccomp()


def _refuse_calls() -> bool:
    """Have every system call refused but ``CALLS``."""
    if _seccomp is None or not (rules := _seccomp.seccomp_init(_REFUSED)):
        return False
    try:
        for name in CALLS:
            number = _seccomp.seccomp_syscall_resolve_name(name.encode())
            _seccomp.seccomp_rule_add_array(rules, _ALLOWED, number, 0, None)
        return bool(_seccomp.seccomp_load(rules) == 0)
    finally:
        _seccomp.seccomp_release(rules)
