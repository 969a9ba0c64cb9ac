"""Kills, fails or shortens the n-th system call of a function, in its own process (ptrace; Linux, x86-64).

A debugger's view of a program: the child stops before and after each system call of each of its threads.
Before one, it can be killed, which is what a crash at that point is; the call can be replaced by an error;
its arguments can be changed.
"""

import ctypes
import os
import platform
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

AVAILABLE = sys.platform == "linux" and platform.machine() == "x86_64"
TRACEME, CONT, GETREGS, SETREGS, SYSCALL, SETOPTIONS = 0, 7, 12, 13, 24, 0x4200
SYSGOOD, CLONE, EXITKILL = 0x1, 0x8, 0x100000
WALL = 0x40000000
# struct user_regs_struct of <sys/user.h>: 27 words
REGISTERS = 27
RAX, RDX, ORIG_RAX = 10, 12, 15
NAMES = {
    0: "read", 3: "close", 5: "fstat", 17: "pread64", 18: "pwrite64", 73: "flock", 74: "fsync", 82: "rename",
    87: "unlink", 4: "stat", 257: "openat", 262: "newfstatat", 277: "sync_file_range", 318: "getrandom",
    60: "exit", 231: "exit_group",
}  # fmt: skip
"""Calls that are asked for by name, by their number on x86-64."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def ptrace(request: int, pid: int, data: object = None) -> None:
    if _libc.ptrace(request, pid, None, data) < 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request}")


def registers(pid: int) -> list[int]:
    raw = ctypes.create_string_buffer(REGISTERS * 8)
    ptrace(GETREGS, pid, ctypes.addressof(raw))
    return list(struct.unpack(f"<{REGISTERS}Q", raw.raw))


def set_registers(pid: int, values: list[int]) -> None:
    raw = ctypes.create_string_buffer(struct.pack(f"<{REGISTERS}Q", *(v & (1 << 64) - 1 for v in values)))
    ptrace(SETREGS, pid, ctypes.addressof(raw))


@dataclass
class Call:
    """A system call that is about to happen.

    `number` counts all of them from 1, `nth` those of the same name.
    """

    number: int
    name: str
    nth: int
    size: int  # third argument


@dataclass
class Plan:
    """What to do: `kill`, `fail` with an error number or `shorten` where the predicate says so."""

    where: Callable[[Call], bool] = lambda call: False
    kill: bool = False
    fail: int = 0
    shorten: bool = False
    again: bool = False  # not only the first time


@dataclass
class Outcome:
    """What became of a run.

    `status` is the exit status of the function's process, or minus the signal; `hit` the call that was
    changed, if there was one.
    """

    status: int
    hit: Call | None
    calls: list[Call] = field(default_factory=list)


def run(function: Callable[[], int], plan: Plan) -> Outcome:
    """Run `function` in a child under the plan; it returns the child's exit status."""
    child = os.fork()
    if child == 0:
        try:
            ptrace(TRACEME, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(function())
        except BaseException:
            traceback.print_exc()
            os._exit(99)
    os.waitpid(child, 0)
    ptrace(SETOPTIONS, child, SYSGOOD | CLONE | EXITKILL)
    return _Tracer(child, plan).run()


class _Tracer:
    def __init__(self, child: int, plan: Plan) -> None:
        self.child, self.plan = child, plan
        self.inside: dict[int, int] = {}  # thread: error to return when its call ends
        self.counts: dict[str, int] = {}
        self.outcome = Outcome(0, None)

    def run(self) -> Outcome:
        ptrace(SYSCALL, self.child)
        while True:
            pid, status = os.waitpid(-1, WALL)
            if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                if pid == self.child:
                    ended = os.WIFEXITED(status)
                    self.outcome.status = os.WEXITSTATUS(status) if ended else -os.WTERMSIG(status)
                    return self.outcome
                continue
            stop = os.WSTOPSIG(status)
            deliver = 0
            try:
                if stop == signal.SIGTRAP | 0x80:
                    self.system_call(pid)
                elif stop not in (signal.SIGTRAP, signal.SIGSTOP):
                    deliver = stop
                ptrace(SYSCALL, pid, deliver)
            except ProcessLookupError:  # killed meanwhile, or its process ended: the next wait says so
                continue

    def system_call(self, pid: int) -> None:
        values = registers(pid)
        if pid in self.inside:
            error = self.inside.pop(pid)
            if error:
                values[RAX] = -error
                set_registers(pid, values)
            return
        self.inside[pid] = 0
        name = NAMES.get(values[ORIG_RAX], str(values[ORIG_RAX]))
        self.counts[name] = self.counts.get(name, 0) + 1
        call = Call(len(self.outcome.calls) + 1, name, self.counts[name], values[RDX])
        self.outcome.calls.append(call)
        if (self.outcome.hit and not self.plan.again) or not self.plan.where(call):
            return
        self.outcome.hit = call
        if self.plan.kill:
            os.kill(self.child, signal.SIGKILL)
        elif self.plan.shorten:
            values[RDX] = max(1, values[RDX] // 2)
            set_registers(pid, values)
        else:
            values[ORIG_RAX] = -1  # no such call: nothing happens
            set_registers(pid, values)
            self.inside[pid] = self.plan.fail
