/* Monotonic time in nanoseconds, real or virtual.
 *
 * Code that waits or measures takes a `struct base_clock *`, so that simulation can run it on
 * virtual time. base_clock_real() is shared and needs no end. Any thread.
 */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stdint.h>

struct base_clock {
    uint64_t (*now_ns)(struct base_clock *clock);
    void (*sleep_until_ns)(struct base_clock *clock, uint64_t deadline_ns);
};

/* The machine's monotonic clock. */
struct base_clock *base_clock_real(void);

/* A clock that moves only when told to: sleeping on it jumps to the deadline. */
struct base_clock_virtual {
    struct base_clock clock;
    uint64_t time_ns;
};
void base_clock_virtual_init(struct base_clock_virtual *clock, uint64_t start_ns);

static inline uint64_t base_clock_now_ns(struct base_clock *clock)
{
    return clock->now_ns(clock);
}

/* Shorthand for the real clock. */
uint64_t base_now_ns(void);

#endif
