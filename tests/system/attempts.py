"""What a program that took over the daemon would try. A script: run as a unit, it prints as JSON what came of each.

    "allowed", or the error's name ("EPERM", "EROFS"); "killed by SIGSYS"; for a few what was found

Each attempt is made by a child of its own, so that none can change what the next one meets. System calls are made by
their numbers, without a C library's own checks. What would harm the machine if it were allowed has arguments that
cannot work: the kernel then says EINVAL, EFAULT or EBADF, and only a refusal says anything else.

`attempts.py confinement` prints what the kernel says of the process instead: /proc/self/status, limits and mountinfo.
"""

import ctypes
import errno
import json
import mmap
import os
import platform
import pwd
import signal
import socket
import stat
import struct
import subprocess
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
STATE = "/var/lib/netd"
X86 = platform.machine() == "x86_64"

# system calls by number: those of 64-bit ARM and other new architectures, and x86-64's own
NUMBERS = {
    "acct": (89, 163),
    "add_key": (217, 248),
    "adjtimex": (171, 159),
    "bpf": (280, 321),
    "chroot": (51, 161),
    "clock_settime": (112, 227),
    "delete_module": (106, 176),
    "fanotify_init": (262, 300),
    "init_module": (105, 175),
    "io_setup": (0, 206),
    "io_uring_setup": (425, 425),
    "kcmp": (272, 312),
    "kexec_load": (104, 246),
    "keyctl": (219, 250),
    "memfd_create": (279, 319),
    "mlock": (228, 149),
    "mlockall": (230, 151),
    "mount": (40, 165),
    "name_to_handle_at": (264, 303),
    "open_by_handle_at": (265, 304),
    "perf_event_open": (241, 298),
    "personality": (92, 135),
    "pidfd_getfd": (438, 438),
    "pivot_root": (41, 155),
    "process_vm_readv": (270, 310),
    "process_vm_writev": (271, 311),
    "ptrace": (117, 101),
    "quotactl": (60, 179),
    "reboot": (142, 169),
    "sched_setaffinity": (122, 203),
    "sched_setscheduler": (119, 144),
    "semget": (190, 64),
    "setdomainname": (162, 171),
    "setgid": (144, 106),
    "setgroups": (159, 116),
    "sethostname": (161, 170),
    "setns": (268, 308),
    "setpriority": (140, 141),
    "settimeofday": (170, 164),
    "setuid": (146, 105),
    "shmget": (194, 29),
    "swapoff": (225, 168),
    "swapon": (224, 167),
    "syslog": (116, 103),
    "umount2": (39, 166),
    "unshare": (97, 272),
    "userfaultfd": (282, 323),
    "vhangup": (58, 153),
    "vmsplice": (75, 278),
}
BAD = ctypes.c_void_p(1)  # an address that cannot be read


def call(name, *arguments):
    ctypes.set_errno(0)
    result = LIBC.syscall(
        NUMBERS[name][X86], *(a if isinstance(a, ctypes.c_void_p) else ctypes.c_long(a) for a in arguments)
    )
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


# --- the file system -------------------------------------------------------------------------------------------------


def write(path):
    def attempt():
        with open(path, "w"):
            pass

    return attempt


def write_to(path):
    def attempt():
        os.close(os.open(path, os.O_WRONLY))

    return attempt


def read(path):
    def attempt():
        with open(path, "rb") as file:
            file.read(1)

    return attempt


def look_into(path):
    return lambda: " ".join(sorted(os.listdir(path))) or "nothing"


def program_of_ours(directory):
    """Write a program and run it."""

    def attempt():
        path = f"{directory}/attempt-{os.getpid()}"
        with open(path, "w") as file:
            file.write("#!/bin/sh\n")
        try:
            os.chmod(path, 0o700)
            subprocess.run([path], check=True)
        finally:
            os.unlink(path)

    return attempt


def code_of_ours(directory):
    """Write a file and map it as code, as a shared library is."""

    def attempt():
        path = f"{directory}/attempt-{os.getpid()}"
        with open(path, "wb") as file:
            file.write(bytes(mmap.PAGESIZE))
        try:
            with open(path, "rb") as file:
                mmap.mmap(file.fileno(), mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_EXEC, flags=mmap.MAP_PRIVATE)
        finally:
            os.unlink(path)

    return attempt


def on_file_of_ours(change):
    def attempt():
        path = f"{STATE}/attempt-{os.getpid()}"
        with open(path, "w"):
            pass
        try:
            change(path)
        finally:
            os.unlink(path)

    return attempt


def make_device():
    path = f"{STATE}/attempt-{os.getpid()}"
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 1))
    os.unlink(path)


def output_of(*command):
    return lambda: subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


# --- other processes -------------------------------------------------------------------------------------------------


def processes_of_others():
    others = [
        int(name) for name in os.listdir("/proc") if name.isdigit() and os.stat(f"/proc/{name}").st_uid != os.getuid()
    ]
    return "some" if others else "none"


def name_of_init():
    with open("/proc/1/comm") as file:
        return file.read().strip()


def files_of_init():
    return "some" if [os.readlink(f"/proc/1/fd/{name}") for name in os.listdir("/proc/1/fd")] else "none"


def trace_a_child():
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        call("ptrace", 16, child, 0, 0)  # PTRACE_ATTACH
    finally:
        os.kill(child, signal.SIGKILL)


# --- memory ----------------------------------------------------------------------------------------------------------

LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
READ, WRITE, EXECUTE = mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC


def memory(protection):
    address = LIBC.mmap(None, mmap.PAGESIZE, protection, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    return address


def turn_into_code():
    if LIBC.mprotect(memory(READ | WRITE), mmap.PAGESIZE, READ | EXECUTE) < 0:
        raise OSError(ctypes.get_errno(), "mprotect")


# --- kernel ----------------------------------------------------------------------------------------------------------


def opened(family, kind, protocol=0):
    return lambda: socket.socket(family, kind, protocol).close()


def bound(port):
    def attempt():
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))

    return attempt


def old_program():
    """Run a program of 32-bit x86 that ends with 42 by `int 0x80`."""
    code = b"\xb8\x01\0\0\0\xbb\x2a\0\0\0\xcd\x80"  # mov eax, exit; mov ebx, 42; int 0x80
    base, size = 0x08048000, 52 + 32 + len(code)
    header = b"\x7fELF\x01\x01\x01" + bytes(9)
    header += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, base + 52 + 32, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    header += struct.pack("<8I", 1, 0, base, base, size, size, 5, 4096)
    file = os.memfd_create("old", 0)  # what is written here may be executed, unlike netd's directories
    os.write(file, header + code)
    child = os.fork()
    if child == 0:
        try:
            os.execve(file, ["old"], {})
        except OSError as error:
            os._exit(0 if error.errno == errno.ENOEXEC else 1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return {42: "allowed", 0: "unknown to this kernel"}.get(os.waitstatus_to_exitcode(status), "refused")


NAMESPACES = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
FAMILIES = {
    "key": 15,
    "rds": 21,
    "can": 29,
    "tipc": 30,
    "bluetooth": 31,
    "alg": 38,
    "vsock": 40,
    "qipcrtr": 42,
    "xdp": 44,
}

ATTEMPTS = {
    # file system
    "write to /": write("/attempt"),
    "write to /usr": write("/usr/attempt"),
    "write to /usr/lib/netd": write("/usr/lib/netd/attempt"),
    "write to /etc": write("/etc/attempt"),
    "write to /etc/netd": write("/etc/netd/attempt"),
    "write to /var": write("/var/attempt"),
    "write to /run": write("/run/attempt"),
    "write to a sysctl": write_to("/proc/sys/net/ipv4/ip_forward"),
    "read a sysctl": read("/proc/sys/kernel/osrelease"),
    "write to sysfs": write_to("/sys/class/net/lo/mtu"),
    "write to a control group": write_to("/sys/fs/cgroup/cgroup.procs"),
    "read the kernel's symbols": read("/proc/kallsyms"),
    "read a home": look_into("/home/lab"),
    "read root's home": look_into("/root"),
    "look into /srv": look_into("/srv"),
    "look into /mnt": look_into("/mnt"),
    "look into /boot": look_into("/boot"),
    "reach D-Bus": look_into("/run/dbus"),
    "see files in /tmp": look_into("/tmp"),
    "read the admin's credentials": look_into("/etc/netd/credentials"),
    "read /etc/shadow": read("/etc/shadow"),
    "write to the state directory": on_file_of_ours(lambda path: None),
    "write to /run/netd": write("/run/netd/attempt"),
    "write to /tmp": write("/tmp/attempt"),
    "run a program from the state directory": program_of_ours(STATE),
    "run a program from /tmp": program_of_ours("/tmp"),
    "run a program from /dev/shm": program_of_ours("/dev/shm"),
    "map a file of the state directory as code": code_of_ours(STATE),
    "run an installed program": output_of("/usr/bin/true"),
    "identity a set-user-ID program gives": output_of("/usr/local/bin/lab-suid", "-u"),
    "make a set-user-ID program": on_file_of_ours(lambda path: os.chmod(path, 0o4700)),
    "change a file's group": on_file_of_ours(lambda path: os.chown(path, -1, os.getgid())),
    "give a file away": on_file_of_ours(lambda path: os.chown(path, 1, -1)),
    "give a file to a strange group": on_file_of_ours(lambda path: os.chown(path, -1, 1)),
    "make a device": make_device,
    "see devices": look_into("/dev"),
    "open /dev/kmsg": read("/dev/kmsg"),
    "open /dev/null": write_to("/dev/null"),
    "open a device that a drop-in shows": read("/dev/lab-device"),
    # other processes
    "see processes of others": processes_of_others,
    "name of process 1": name_of_init,
    "files of process 1": files_of_init,
    "memory of process 1": read("/proc/1/mem"),
    "trace a child": trace_a_child,
    "read memory of a process": lambda: call("process_vm_readv", os.getpid(), 0, 0, 0, 0, 0),
    "write memory of a process": lambda: call("process_vm_writev", os.getpid(), 0, 0, 0, 0, 0),
    "compare with a process": lambda: call("kcmp", os.getpid(), os.getpid(), 2, 0, 0),
    "take a descriptor of a process": lambda: call("pidfd_getfd", -1, 0, 0),
    # memory
    "memory to write and execute": lambda: memory(READ | WRITE | EXECUTE) and None,
    "memory written, then executed": turn_into_code,
    "lock memory": lambda: call("mlock", memory(READ), mmap.PAGESIZE) and None,
    "lock all memory": lambda: call("mlockall", 0),
    "handle page faults": lambda: os.close(call("userfaultfd", 1)),  # UFFD_USER_MODE_ONLY
    "sealed memory": lambda: os.close(os.memfd_create("attempt")),
    "shared memory": lambda: call("shmget", 0, 0, 0),
    "semaphores": lambda: call("semget", 0, 0, 0),
    # privileges
    "become root": lambda: call("setuid", 0),
    "become root's group": lambda: call("setgid", 0),
    "join groups": lambda: call("setgroups", -1, 0),
    "another personality": lambda: call("personality", 0x0040000) and None,  # ADDR_NO_RANDOMIZE
    "run a 32-bit program": old_program,
    "run in real time": lambda: call("sched_setscheduler", 0, 1, ctypes.c_void_p(ctypes.addressof(ctypes.c_int(1)))),
    "choose processors": lambda: call("sched_setaffinity", 0, 8, BAD),
    "go before others": lambda: call("setpriority", 0, 0, -5),
    "keep a key": lambda: call("add_key", BAD, BAD, BAD, 0, 0),
    "use keys": lambda: call("keyctl", -1, 0, 0, 0, 0),
    # the kernel's rarer doors
    "io_uring": lambda: call("io_uring_setup", 0, 0),
    "asynchronous I/O": lambda: call("io_setup", 0, 0),
    "load a BPF program": lambda: call("bpf", -1, 0, 0),
    "watch performance": lambda: call("perf_event_open", BAD, 0, -1, -1, 0),
    "move pages into a pipe": lambda: call("vmsplice", -1, 0, 0, 0),
    "name a file by handle": lambda: call("name_to_handle_at", -1, BAD, BAD, BAD, 0),
    "open a file by handle": lambda: call("open_by_handle_at", -1, BAD, 0),
    "watch a file system": lambda: call("fanotify_init", -1, 0),
    # the machine
    "mount": lambda: call("mount", BAD, BAD, BAD, 0, 0),
    "unmount": lambda: call("umount2", BAD, 0),
    "change the root": lambda: call("chroot", BAD),
    "swap the root": lambda: call("pivot_root", BAD, BAD),
    "load a module": lambda: call("init_module", BAD, 0, BAD),
    "unload a module": lambda: call("delete_module", BAD, 0),
    "boot another kernel": lambda: call("kexec_load", 0, -1, 0, 0xFFFF0000),
    "reboot": lambda: call("reboot", 0, 0, 0, 0),
    "set the clock": lambda: call("clock_settime", 0, BAD),
    "set the time of day": lambda: call("settimeofday", BAD, 0),
    "adjust the clock": lambda: call("adjtimex", BAD),
    "set the host's name": lambda: call("sethostname", BAD, 5),
    "set the domain's name": lambda: call("setdomainname", BAD, 5),
    "read the kernel's log": lambda: call("syslog", 3, 0, 0) and None,
    "account for processes": lambda: call("acct", BAD),
    "swap": lambda: call("swapon", BAD, 0),
    "stop swapping": lambda: call("swapoff", BAD),
    "set quotas": lambda: call("quotactl", -1, 0, 0, 0),
    "hang up a terminal": lambda: call("vhangup"),
    "join a namespace": lambda: call("setns", -1, 0),
    **{f"{name} namespace": lambda flag=flag: call("unshare", flag) for name, flag in NAMESPACES.items()},
    # sockets
    "Unix socket": opened(socket.AF_UNIX, socket.SOCK_DGRAM),
    "IPv4 socket": opened(socket.AF_INET, socket.SOCK_STREAM),
    "IPv6 socket": opened(socket.AF_INET6, socket.SOCK_STREAM),
    "netlink socket": opened(socket.AF_NETLINK, socket.SOCK_RAW, 4),  # NETLINK_SOCK_DIAG
    "raw IPv4 socket": opened(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW),
    "raw ICMPv6 socket": opened(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6),
    "packet socket": opened(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)),
    "port 443": bound(443),
    "port 8443": bound(8443),
    **{f"socket of family {name}": opened(number, socket.SOCK_DGRAM) for name, number in FAMILIES.items()},
}
ATTEMPTS["socket of family alg"] = opened(socket.AF_ALG, socket.SOCK_SEQPACKET)


def outcome(attempt):
    """What came of it, told by a child through a pipe."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            text = attempt() or "allowed"
        except OSError as error:
            text = errno.errorcode.get(error.errno, str(error.errno)) if error.errno else str(error)
        except subprocess.CalledProcessError as error:
            text = f"ended with {error.returncode}"
        os.write(writing, str(text).encode()[:4000])
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as told:
        text = told.read().decode()
    _, status = os.waitpid(child, 0)
    return f"killed by {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else text


def main():
    if sys.argv[1:] == ["confinement"]:
        found = {}
        for name in ("status", "limits", "mountinfo"):
            with open(f"/proc/self/{name}") as file:
                found[name] = file.read()
    else:
        found = {name: outcome(attempt) for name, attempt in ATTEMPTS.items()}
        found["account"] = pwd.getpwuid(os.getuid()).pw_name
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
