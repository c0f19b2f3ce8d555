#include "tests/gpu/card.h"

#include <stdio.h>
#include <stdlib.h>

static unsigned rows_bad;

void card_check(cudaError_t code, const char *call, const char *file, int line)
{
    if (code == cudaSuccess) return;
    printf("FAIL %s:%d: %s gave %s (%s)\n", file, line, call, cudaGetErrorName(code),
           cudaGetErrorString(code));
    exit(3);
}

void card_check_kern(int rc, const char *call, const char *file, int line)
{
    if (rc == 0) return;
    printf("FAIL %s:%d: %s gave %d; CUDA says %s\n", file, line, call, rc,
           cudaGetErrorName(cudaGetLastError()));
    exit(3);
}

void card_open(struct cudaDeviceProp *prop)
{
    int count = 0;
    const cudaError_t code = cudaGetDeviceCount(&count);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (code != cudaSuccess || count == 0) {
        printf("skipped: no CUDA card here (%s)\n",
               code == cudaSuccess ? "none found" : cudaGetErrorName(code));
        exit(77);
    }
    CARD(cudaSetDevice(0));
    CARD(cudaGetDeviceProperties(prop, 0));
}

unsigned card_rows_bad(void)
{
    return rows_bad;
}

static void row_json(FILE *to, const struct card_row *row)
{
    fprintf(to, "{\"stage\":\"%s\",\"name\":\"%s\",\"ok\":%s", row->stage, row->name,
            row->ok ? "true" : "false");
    if (row->us > 0) fprintf(to, ",\"us\":%.3f", row->us);
    if (row->us > 0 && row->bytes > 0)
        fprintf(to, ",\"bytes\":%.0f,\"gbps\":%.2f", row->bytes, row->bytes / row->us * 1e-3);
    if (row->us > 0 && row->flops > 0)
        fprintf(to, ",\"flops\":%.0f,\"tflops\":%.3f", row->flops, row->flops / row->us * 1e-6);
    if (row->us > 0 && row->bandwidth > 0)
        fprintf(to, ",\"share_bandwidth\":%.4f", row->bytes / row->us * 1e6 / row->bandwidth);
    if (row->us > 0 && row->peak > 0)
        fprintf(to, ",\"share_peak\":%.4f", row->flops / row->us * 1e6 / row->peak);
    fputs(",\"note\":\"", to);
    for (const char *c = row->note; *c; c++)
        if (*c != '"' && *c != '\\' && (unsigned char)*c >= ' ') fputc(*c, to);
    fputs("\"}\n", to);
}

void card_row_give(const struct card_row *row)
{
    const char *path = getenv("CARD_ROWS");
    char speed[32] = "", share[32] = "";
    if (!row->ok) rows_bad++;
    /* By what bounds it: the larger of the two shares. */
    if (row->us > 0) {
        const double bytes = row->bytes / row->us * 1e6, flops = row->flops / row->us * 1e6;
        const double of_bytes = row->bandwidth > 0 ? bytes / row->bandwidth : 0;
        const double of_flops = row->peak > 0 ? flops / row->peak : 0;
        if (row->bytes > 0 && of_bytes >= of_flops)
            snprintf(speed, sizeof speed, "%.0f GB/s", bytes * 1e-9);
        else if (row->flops > 0)
            snprintf(speed, sizeof speed, "%.1f Tflop/s", flops * 1e-12);
        if (of_bytes > 0 || of_flops > 0)
            snprintf(share, sizeof share, "%.2f", of_bytes >= of_flops ? of_bytes : of_flops);
    }
    printf("%-4s %-9s %-38s", row->ok ? "ok" : "FAIL", row->stage, row->name);
    if (row->us > 0) printf(" %9.1f us %13s %5s", row->us, speed, share);
    printf("%s%s\n", row->note[0] ? "  " : "", row->note);
    FILE *to = path ? fopen(path, "a") : NULL;
    if (!to) return;
    row_json(to, row);
    fclose(to);
}
