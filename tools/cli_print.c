/* Progress bars and tables of the command line. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/must.h"
#include "base/str.h"
#include "tools/cli.h"

enum { BAR_CELLS = 24, COLUMNS_MAX = 32 };

static const uint64_t silent_ns = 1000000000u;      /* shorter work shows nothing */
static const uint64_t redraw_ns = 100000000u;

void cli_progress_begin(struct cli_progress *progress, const char *what, bool quiet)
{
    *progress = (struct cli_progress){ .what = what, .quiet = quiet,
                                       .started_ns = base_now_ns() };
}

/* `amounts`: what stands between the share and the time left. */
static void print_progress(const struct cli_progress *progress, double share, const char *amounts,
                           uint64_t passed_ns, bool terminal)
{
    char left_text[32], bar[BAR_CELLS + 1];
    double left_ns = share > 0 ? (double)passed_ns * (1 - share) / share : 0.0;
    int full = (int)(share * BAR_CELLS);
    base_str_duration(left_text, sizeof left_text, (uint64_t)left_ns);
    for (int i = 0; i < BAR_CELLS; i++) {
        bar[i] = i < full ? '#' : '.';
    }
    bar[BAR_CELLS] = '\0';
    if (terminal) {
        fprintf(stderr, "\r%s [%s] %3.0f%%  %s%s left\033[K", progress->what, bar, share * 100.0,
                amounts, left_text);
    } else {
        fprintf(stderr, "%s: %.0f%%  %s%s left\n", progress->what, share * 100.0, amounts,
                left_text);
    }
}

/* True when it is time to show something. */
static bool is_due(struct cli_progress *progress, uint64_t now, double share)
{
    if (progress->quiet || now - progress->started_ns < silent_ns) return false;
    bool terminal = isatty(STDERR_FILENO) == 1;
    unsigned tenth = (unsigned)(share * 10.0);
    if (terminal && progress->shown && now - progress->shown_ns < redraw_ns && share < 1) {
        return false;
    }
    if (!terminal && tenth == progress->shown_tenth) return false;
    progress->shown = true;
    progress->shown_ns = now;
    progress->shown_tenth = tenth;
    return true;
}

void cli_progress_bytes(struct cli_progress *progress, uint64_t done, uint64_t total)
{
    char done_text[32], total_text[32], rate_text[32], amounts[128];
    uint64_t now = base_now_ns(), passed_ns = now - progress->started_ns;
    if (done > total) done = total;
    double share = total > 0 ? (double)done / (double)total : 1.0;
    if (!is_due(progress, now, share)) return;
    base_str_bytes(done_text, sizeof done_text, done);
    base_str_bytes(total_text, sizeof total_text, total);
    base_str_bytes(rate_text, sizeof rate_text, (uint64_t)((double)done * 1e9 / (double)passed_ns));
    snprintf(amounts, sizeof amounts, "%s of %s  %s/s  ", done_text, total_text, rate_text);
    print_progress(progress, share, amounts, passed_ns, isatty(STDERR_FILENO) == 1);
}

void cli_progress_share(struct cli_progress *progress, const char *what, double share)
{
    uint64_t now = base_now_ns();
    if (share > 1) share = 1;
    progress->what = what;
    if (!is_due(progress, now, share)) return;
    print_progress(progress, share, "", now - progress->started_ns, isatty(STDERR_FILENO) == 1);
}

void cli_progress_end(struct cli_progress *progress)
{
    if (progress->shown && isatty(STDERR_FILENO) == 1) fputc('\n', stderr);
    progress->shown = false;
}

struct cli_table {
    unsigned columns, rows;     /* the headings are row 0 */
    struct base_buf cells;      /* NUL-ended texts one after another */
    unsigned width[COLUMNS_MAX];
    bool number[COLUMNS_MAX];   /* every cell so far looks like a number */
};

/* Columns on a terminal: characters, not bytes. */
static unsigned text_width(const char *text)
{
    unsigned width = 0;
    for (; *text; text++) {
        width += ((unsigned char)*text & 0xc0) != 0x80;
    }
    return width;
}

static bool looks_like_number(const char *text)
{
    if (!text[0] || strcmp(text, "-") == 0) return true;
    if (*text == '-' || *text == '+') text++;
    return *text >= '0' && *text <= '9';
}

static void add_cells(struct cli_table *table, const char *const *cells)
{
    for (unsigned i = 0; i < table->columns; i++) {
        const char *cell = cells[i] ? cells[i] : "";
        unsigned width = text_width(cell);
        if (width > table->width[i]) table->width[i] = width;
        base_buf_append(&table->cells, cell, strlen(cell) + 1);
    }
    table->rows++;
}

int cli_table_create(struct cli_table **out, unsigned columns, const char *const *headings)
{
    *out = NULL;
    MUST(columns >= 1 && columns <= COLUMNS_MAX);
    struct cli_table *table = calloc(1, sizeof *table);
    if (!table) return -ENOMEM;
    base_buf_init(&table->cells);
    table->columns = columns;
    for (unsigned i = 0; i < columns; i++) {
        table->number[i] = true;
    }
    add_cells(table, headings);
    *out = table;
    return 0;
}

void cli_table_row(struct cli_table *table, const char *const *cells)
{
    for (unsigned i = 0; i < table->columns; i++) {
        if (cells[i] && !looks_like_number(cells[i])) table->number[i] = false;
    }
    add_cells(table, cells);
}

void cli_table_print(struct cli_table *table, FILE *to)
{
    if (base_buf_error(&table->cells) < 0) {
        fputs("(no memory for this table)\n", to);
        return;
    }
    const char *cell = table->cells.data;
    for (unsigned r = 0; r < table->rows; r++) {
        unsigned owed = 0;              /* blanks that only matter if something follows */
        for (unsigned i = 0; i < table->columns; i++) {
            unsigned pad = table->width[i] - text_width(cell);
            if (table->number[i]) owed += pad;
            if (*cell) {
                fprintf(to, "%*s%s", (int)owed, "", cell);
                owed = 0;
            }
            owed += (table->number[i] ? 0 : pad) + 2;
            cell += strlen(cell) + 1;
        }
        fputc('\n', to);
    }
}

void cli_table_destroy(struct cli_table *table)
{
    if (!table) return;
    base_buf_fini(&table->cells);
    free(table);
}
