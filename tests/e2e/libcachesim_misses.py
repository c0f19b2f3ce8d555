"""Miss counts of lru, lfu without decay, arc, s3fifo and sieve equal those of the package libcachesim.

One request at a time, every layer of gptoss20b_dev by itself, at 25, 37.5 and 50% of its experts.
Both sides get the same parameters. s3fifo: small queue a tenth of the slots, ghost as many as main,
two uses to main; compared at 62.5, 75 and 87.5%, because below 20 slots the small queue is a single
slot, and libcachesim refuses an object that is as large as its small queue: it admits nothing, which
is checked, too. Where a count differs, the shortest beginning of the trace that tells them apart is
found and its last token printed.

Makes a virtual environment under the build folder on its first run. Exits 77 with the reason where
the data, Python, pip or the package cannot be had. Takes the number of tokens to replay as an
argument (default 10000; 0 = all).
"""
import json
import lzma
import os
import subprocess
import sys
import tempfile

from needs import need, skip

SOURCE = os.environ["EXPERTIER_SOURCE"]
BUILD = os.environ["EXPERTIER_BUILD"]
REPLAY = os.path.join(BUILD, "bin", "tier-replay")
DATA = os.path.join(os.environ.get("EXPERTIER_DATA", ""), "routing/gptoss20b_dev.jsonl.xz")
CAPACITIES = {"s3fifo": ["62.5%", "75%", "87.5%"]}
OTHERS = ["25%", "37.5%", "50%"]


def theirs(policy, slots):
    import libcachesim as lib
    if policy == "s3fifo":
        # Theirs takes shares and cuts off what is below a whole slot.
        small, ghost = max(slots // 10, 1), slots - slots // 10
        return lib.S3FIFO(slots, hashpower=10, small_size_ratio=(small + 0.01) / slots,
                          ghost_size_ratio=(ghost + 0.01) / slots, move_to_main_threshold=2)
    kinds = {"lru": lib.LRU, "lfu": lib.LFU, "arc": lib.ARC, "sieve": lib.Sieve}
    return kinds[policy](slots, hashpower=10)


def their_misses(policy, slots, requests):
    """For each request whether it was a miss."""
    import libcachesim as lib
    cache, request = theirs(policy, slots), lib.Request()
    request.obj_size = 1
    missed = []
    for expert in requests:
        request.obj_id = expert + 1
        missed.append(not cache.get(request))
    return missed


def our_misses(trace, policy):
    """slots -> misses of each layer."""
    out = subprocess.run([REPLAY, "run", trace, "--policy", policy, "--capacity",
                          ",".join(CAPACITIES.get(policy, OTHERS)), "--set", "policy.half_life=0",
                          "--one-at-a-time", "--layers", "--json", "--quiet"], check=True,
                         capture_output=True).stdout
    return {int(run["slots_per_layer"]): [c["misses"] for c in run["by_layer"]]
            for run in json.loads(out)["runs"]}


def write_trace(folder, name, head, lines):
    text, trace = os.path.join(folder, name + ".jsonl"), os.path.join(folder, name)
    with open(text, "w") as file:
        file.write(head)
        file.writelines(lines)
    subprocess.run([REPLAY, "import", "--from", "jsonl", text, "-o", trace, "--quiet"], check=True)
    os.unlink(text)
    return trace


def explain(work, head, lines, policy, slots, layer, requests, top_k):
    """The first token after which the counts differ, by halving."""
    missed = their_misses(policy, slots, requests)
    low, high = 0, len(lines)               # equal after low tokens, different after high
    while high - low > 1:
        middle = (low + high) // 2
        trace = write_trace(work, "part", head, lines[:middle])
        ours = our_misses(trace, policy)[slots][layer]
        os.unlink(trace)
        if ours == sum(missed[:middle * top_k]):
            low = middle
        else:
            high = middle
    print(f"   {policy} at {slots} slots, layer {layer}: the counts differ first at token {low}: "
          f"experts {requests[low * top_k:high * top_k]}, theirs misses "
          f"{[e for e, m in zip(requests[low * top_k:high * top_k], missed[low * top_k:]) if m]}")


def main():
    need("libcachesim", "libcachesim")
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 10000
    with lzma.open(DATA, "rt") as file:
        head = file.readline()
        lines = []
        for line in file:
            lines.append(line)
            if len(lines) == tokens:
                break
    shape = json.loads(head)
    layers = [[] for _ in range(shape["layers"])]
    for line in lines:
        for layer, experts in enumerate(json.loads(line)["experts"]):
            layers[layer].extend(experts)
    different = caches = 0
    with tempfile.TemporaryDirectory() as work:
        trace = write_trace(work, "all", head, lines)
        for policy in ["lru", "lfu", "arc", "s3fifo", "sieve"]:
            for slots, misses in our_misses(trace, policy).items():
                want = [sum(their_misses(policy, slots, requests)) for requests in layers]
                wrong = [i for i, pair in enumerate(zip(misses, want)) if pair[0] != pair[1]]
                print(f"{policy:7} {slots:3} slots of {shape['experts']}: layer 0 {misses[0]} misses, "
                      f"libcachesim {want[0]}; all {len(layers)} layers {sum(misses)} and "
                      f"{sum(want)}; {len(wrong)} layers differ")
                different += len(wrong)
                caches += len(layers)
                if wrong:
                    explain(work, head, lines, policy, slots, wrong[0], layers[wrong[0]],
                            shape["top_k"])
    refused = sum(their_misses("s3fifo", 12, layers[0]))
    print(f"s3fifo   12 slots, a small queue of one: libcachesim admits nothing, {refused} of "
          f"{len(layers[0])} requests miss: not compared")
    if refused != len(layers[0]):
        print("   it does admit now: compare s3fifo below 20 slots, too")
        different += 1
    print(f"{len(lines)} tokens: {different} of {caches} caches differ")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    if not os.path.exists(DATA):
        skip(f"{DATA} is not there (EXPERTIER_DATA)")
    main()
