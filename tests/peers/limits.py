"""What measurements under a memory limit share: a control group, and files dropped from the page cache."""
import contextlib
import os
import tempfile


@contextlib.contextmanager
def memory_limit(limit):
    """A function that puts the calling process into a cgroup of `limit` bytes; None without a limit."""
    if not limit:
        yield None
        return
    first = "/sys/fs/cgroup/memory" if os.path.isdir("/sys/fs/cgroup/memory") else "/sys/fs/cgroup"
    key = "memory.limit_in_bytes" if first.endswith("memory") else "memory.max"
    folder = tempfile.mkdtemp(prefix="expertier_compare_", dir=first)
    try:
        with open(f"{folder}/{key}", "w") as f:
            f.write(str(limit))

        def enter():
            with open(f"{folder}/cgroup.procs", "w") as f:
                f.write(str(os.getpid()))
        yield enter
    finally:
        os.rmdir(folder)


def forget(path):
    """Drops the file from the page cache: pages that an earlier run brought in would be charged to nobody's limit."""
    with open(path, "rb") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
