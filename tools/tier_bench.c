/* tier-bench: measures this machine and our parts on it. */
#include "tools/bench.h"

int main(int argc, char **argv)
{
    const struct cli_command commands[] = {
        bench_cache_command,
        bench_decode_command,
        bench_io_command,
        bench_kernels_command,
        bench_machine_command,
        bench_predict_command,
        bench_foresight_command,
        bench_prefill_command,
        bench_replay_command,
    };
    const struct cli_program program = {
        .name = "tier-bench",
        .text = "measure this machine and the parts of Expertier on it",
        .commands = commands,
        .command_count = sizeof commands / sizeof commands[0],
        .examples = "tier-bench cache --policy lfu\n"
                    "tier-bench io\n"
                    "tier-bench machine --set io.throttle_bandwidth=200MB -o machine.yaml\n"
                    "tier-bench io --json --dir /mnt/nvme --size 2MiB,44MiB --depth 8,32",
    };
    return cli_main(&program, argc, argv);
}
