/* The two halves of kcheck: comparison (kcheck.c) and rates (kbench.c). */
#ifndef TESTS_KERNELS_KCHECK_H
#define TESTS_KERNELS_KCHECK_H

/* Prints rates of every op (or the named one) of every op set; returns an exit status. */
int kbench_run(const char *only, const char *type);
/* The share of reading from DRAM that matrix-vector products reach; EXIT_FAILURE below 0.90. */
int kbench_floor(const char *type);

#endif
