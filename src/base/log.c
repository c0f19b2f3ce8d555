#include "base/log.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LINE_BYTES = 2048 };

static const char *const level_names[] = { "error", "warn", "info", "debug" };

static atomic_int level_max = BASE_LOG_INFO;
static atomic_bool as_json;
static void (*_Atomic sink_now)(enum base_log_level level, const char *area, const char *text);

static pthread_mutex_t repeat_lock = PTHREAD_MUTEX_INITIALIZER;
static char last_text[LINE_BYTES];
static time_t last_second;
static unsigned repeated;

/* Appends `text` with JSON escapes; cuts rather than overflows. */
static size_t append_escaped(char *to, size_t at, size_t size, const char *text)
{
    for (; *text && at + 8 < size; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') {
            to[at++] = '\\';
            to[at++] = (char)c;
        } else if (c < 0x20) {
            at += (size_t)snprintf(to + at, size - at, "\\u%04x", c);
        } else {
            to[at++] = (char)c;
        }
    }
    to[at] = '\0';
    return at;
}

static void write_line(enum base_log_level level, const char *area, const char *text)
{
    char line[2 * LINE_BYTES];
    struct timespec now;
    void (*sink)(enum base_log_level, const char *, const char *) = atomic_load(&sink_now);
    if (sink) {
        sink(level, area, text);
        return;
    }
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    char stamp[32];
    size_t n = strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(stamp + n, sizeof stamp - n, ".%03ldZ", now.tv_nsec / 1000000);

    size_t used;
    if (atomic_load(&as_json)) {
        used = (size_t)snprintf(line, sizeof line,
                                "{\"time\":\"%s\",\"level\":\"%s\",\"area\":\"%s\",\"text\":\"",
                                stamp, level_names[level], area);
        used = append_escaped(line, used, sizeof line - 4, text);
        used += (size_t)snprintf(line + used, sizeof line - used, "\"}\n");
    } else {
        used = (size_t)snprintf(line, sizeof line, "%s %-5s %-8s %s\n", stamp, level_names[level],
                                area, text);
    }
    ssize_t written = write(STDERR_FILENO, line, used);
    (void)written;                      /* nowhere left to complain */
}

void base_log(enum base_log_level level, const char *area, const char *format, ...)
{
    if ((int)level > atomic_load_explicit(&level_max, memory_order_relaxed)) return;
    char text[LINE_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);

    char note[64] = "";
    time_t second = time(NULL);
    pthread_mutex_lock(&repeat_lock);
    if (second - last_second < 2 && strcmp(text, last_text) == 0) {
        repeated++;
        pthread_mutex_unlock(&repeat_lock);
        return;
    }
    if (repeated > 0) snprintf(note, sizeof note, "last line repeated=%u", repeated);
    repeated = 0;
    last_second = second;
    memcpy(last_text, text, sizeof last_text);
    pthread_mutex_unlock(&repeat_lock);

    if (note[0]) write_line(level, area, note);
    write_line(level, area, text);
}

void base_log_level_set(enum base_log_level level)
{
    atomic_store(&level_max, (int)level);
}

void base_log_json_set(bool json)
{
    atomic_store(&as_json, json);
}

void base_log_sink_set(void (*sink)(enum base_log_level level, const char *area, const char *text))
{
    atomic_store(&sink_now, sink);
}

int base_log_level_parse(const char *text)
{
    for (int i = 0; i < (int)(sizeof level_names / sizeof level_names[0]); i++) {
        if (strcmp(text, level_names[i]) == 0) return i;
    }
    return -EINVAL;
}
