"""What measurements under a memory limit share: a control group, files dropped from the page cache, the disk's rate."""
import contextlib
import json
import os
import subprocess
import sys
import tempfile

POOL = "/proc/sys/vm/nr_hugepages"
CHUNK, DEPTH = 1 << 20, 32      # the defaults of io.chunk and io.depth


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


@contextlib.contextmanager
def huge_pages():
    """Sets huge pages aside for fio's buffers; yields whether there are enough."""
    with open(POOL) as f:
        before = int(f.read())
    try:
        with open(POOL, "w") as f:
            f.write(str(before + DEPTH * CHUNK // (2 << 20) + 8))
        with open(POOL) as f:
            yield int(f.read()) >= before + DEPTH * CHUNK // (2 << 20) + 2
    finally:
        with open(POOL, "w") as f:
            f.write(str(before))


def fio(files, huge, seed, seconds):
    """Bytes a second of random reads of these files, O_DIRECT, as Expertier sends them, into huge pages or small ones."""
    done = subprocess.run(["fio", "--name=experts", f"--filename={':'.join(files)}", "--readonly", "--direct=1", "--ioengine=io_uring",
                           "--rw=randread", "--norandommap", f"--bs={CHUNK}", f"--iodepth={DEPTH}", f"--randseed={seed}",
                           "--time_based", f"--runtime={seconds}", "--output-format=json"] + ["--mem=mmaphuge"] * huge,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        sys.stderr.write(done.stderr.decode(errors="replace")[-2000:])
        sys.exit(f"fio ended with {done.returncode}")
    return json.loads(done.stdout.decode())["jobs"][0]["read"]["bw_bytes"]


def forget(path):
    """Drops the file from the page cache: pages that an earlier run brought in would be charged to nobody's limit."""
    with open(path, "rb") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
