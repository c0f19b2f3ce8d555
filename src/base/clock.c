#include "base/clock.h"

#include <errno.h>
#include <time.h>

static uint64_t real_now(struct base_clock *clock)
{
    (void)clock;
    return base_now_ns();
}

static void real_sleep_until(struct base_clock *clock, uint64_t deadline_ns)
{
    (void)clock;
    struct timespec at = { .tv_sec = (time_t)(deadline_ns / 1000000000u),
                           .tv_nsec = (long)(deadline_ns % 1000000000u) };
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR) {
    }
}

static struct base_clock real_clock = { real_now, real_sleep_until };

struct base_clock *base_clock_real(void)
{
    return &real_clock;
}

uint64_t base_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t virtual_now(struct base_clock *clock)
{
    return ((struct base_clock_virtual *)clock)->time_ns;
}

static void virtual_sleep_until(struct base_clock *clock, uint64_t deadline_ns)
{
    struct base_clock_virtual *v = (struct base_clock_virtual *)clock;
    if (deadline_ns > v->time_ns) v->time_ns = deadline_ns;
}

void base_clock_virtual_init(struct base_clock_virtual *clock, uint64_t start_ns)
{
    clock->clock.now_ns = virtual_now;
    clock->clock.sleep_until_ns = virtual_sleep_until;
    clock->time_ns = start_ns;
}
