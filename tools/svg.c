#include "tools/svg.h"

#include <math.h>
#include <string.h>

enum { LEFT = 62, TOP = 34, BOTTOM = 52, RIGHT = 20, LEGEND_ROW = 18, LEGEND_COLUMNS = 4 };
enum { MARKED_MAX = 12 }; /* points of a line that get a marker each */

static const struct look {
    const char *colour, *dash;
    int marker; /* 0 circle, 1 square, 2 triangle, 3 diamond */
} looks[SVG_SERIES_MAX] = {
    { "#000000", "none", 0 }, { "#0072b2", "none", 1 }, { "#d55e00", "7 3", 2 },
    { "#009e73", "none", 3 }, { "#cc79a7", "3 3", 0 },  { "#a06a00", "9 3 2 3", 1 },
    { "#2a9fd6", "4 2", 2 },  { "#555555", "2 3", 3 },  { "#7a5195", "5 2", 0 },
    { "#8c2d04", "10 4", 1 },
};

static double x_of(const struct svg_plot *p, double x)
{
    return LEFT + (x - p->x_min) / (p->x_max - p->x_min) * p->width;
}

static double y_of(const struct svg_plot *p, double y)
{
    return TOP + p->height - (y - p->y_min) / (p->y_max - p->y_min) * p->height;
}

void svg_text(FILE *to, const char *text)
{
    for (; *text; text++) {
        switch (*text) {
        case '&':
            fputs("&amp;", to);
            break;
        case '<':
            fputs("&lt;", to);
            break;
        case '>':
            fputs("&gt;", to);
            break;
        default:
            fputc((unsigned char)*text < 32 ? ' ' : *text, to);
        }
    }
}

static void label(FILE *to, double x, double y, const char *attributes, const char *text)
{
    fprintf(to, "<text x=\"%.1f\" y=\"%.1f\" %s>", x, y, attributes);
    svg_text(to, text);
    fputs("</text>\n", to);
}

static void open_figure(FILE *to, unsigned width, unsigned height, const char *title)
{
    fprintf(to, "<svg viewBox=\"0 0 %u %u\" width=\"%u\" height=\"%u\" role=\"img\" aria-label=\"",
            width, height, width, height);
    svg_text(to, title);
    fputs("\">\n", to);
    label(to, LEFT, 20, "class=\"title\"", title);
}

void svg_begin(const struct svg_plot *p)
{
    char text[64];
    FILE *to = p->to;
    double bottom = TOP + p->height, right = LEFT + p->width;
    unsigned rows = (SVG_SERIES_MAX + LEGEND_COLUMNS - 1) / LEGEND_COLUMNS;
    open_figure(to, LEFT + p->width + RIGHT, TOP + p->height + BOTTOM + rows * LEGEND_ROW,
                p->title);
    for (double y = p->y_min; y <= p->y_max + p->y_step / 100; y += p->y_step) {
        fprintf(to, "<line class=\"grid\" x1=\"%d\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", LEFT,
                y_of(p, y), right, y_of(p, y));
        snprintf(text, sizeof text, "%.6g%s", y, p->y_unit);
        label(to, LEFT - 8, y_of(p, y) + 4, "text-anchor=\"end\"", text);
    }
    for (double x = p->x_min; x <= p->x_max + p->x_step / 100; x += p->x_step) {
        fprintf(to, "<line class=\"axis\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n",
                x_of(p, x), bottom, x_of(p, x), bottom + 4);
        snprintf(text, sizeof text, "%.6g%s", x, p->x_unit);
        label(to, x_of(p, x), bottom + 18, "text-anchor=\"middle\"", text);
    }
    fprintf(to, "<path class=\"axis\" d=\"M%d %d V%.1f H%.1f\"/>\n", LEFT, TOP, bottom, right);
    label(to, (LEFT + right) / 2, bottom + 38, "text-anchor=\"middle\"", p->x_label);
    snprintf(text, sizeof text, "text-anchor=\"middle\" transform=\"rotate(-90 16 %.1f)\"",
             TOP + p->height / 2.0);
    label(to, 16, TOP + p->height / 2.0, text, p->y_label);
}

void svg_end(const struct svg_plot *p)
{
    fputs("</svg>\n", p->to);
}

static void marker(FILE *to, const struct look *look, double x, double y)
{
    switch (look->marker) {
    case 0:
        fprintf(to, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"%s\"/>\n", x, y,
                look->colour);
        break;
    case 1:
        fprintf(to, "<rect x=\"%.1f\" y=\"%.1f\" width=\"6.4\" height=\"6.4\" fill=\"%s\"/>\n",
                x - 3.2, y - 3.2, look->colour);
        break;
    case 2:
        fprintf(to, "<path d=\"M%.1f %.1f l4.2 7.4 h-8.4 z\" fill=\"%s\"/>\n", x, y - 4.6,
                look->colour);
        break;
    default:
        fprintf(to, "<path d=\"M%.1f %.1f l4.4 4.4 l-4.4 4.4 l-4.4 -4.4 z\" fill=\"%s\"/>\n", x,
                y - 4.4, look->colour);
    }
}

static void path_begin(FILE *to, const struct look *look)
{
    fprintf(to,
            "<path fill=\"none\" stroke=\"%s\" stroke-width=\"1.8\" stroke-dasharray=\"%s\" d=\"",
            look->colour, look->dash);
}

void svg_line(const struct svg_plot *p, unsigned series, const double *x, const double *y,
              unsigned count)
{
    const struct look *look = &looks[series % SVG_SERIES_MAX];
    path_begin(p->to, look);
    for (unsigned i = 0; i < count; i++) {
        fprintf(p->to, "%s%.1f %.1f", i == 0 ? "M" : " L", x_of(p, x[i]), y_of(p, y[i]));
    }
    fputs("\"/>\n", p->to);
    for (unsigned i = 0; count <= MARKED_MAX && i < count; i++) {
        marker(p->to, look, x_of(p, x[i]), y_of(p, y[i]));
    }
}

void svg_note(const struct svg_plot *p, double x, double y, const char *text)
{
    label(p->to, x_of(p, x) + 6, y_of(p, y) + 14, "class=\"note\"", text);
}

void svg_legend(const struct svg_plot *p, const unsigned *series, const char *const *names,
                unsigned count)
{
    double column = (double)p->width / LEGEND_COLUMNS;
    for (unsigned i = 0; i < count; i++) {
        const struct look *look = &looks[(series ? series[i] : i) % SVG_SERIES_MAX];
        double x = LEFT + column * (i % LEGEND_COLUMNS);
        double y = TOP + p->height + BOTTOM + 8 + LEGEND_ROW * (double)(i / LEGEND_COLUMNS);
        path_begin(p->to, look);
        fprintf(p->to, "M%.1f %.1f h28\"/>\n", x, y);
        marker(p->to, look, x + 14, y);
        label(p->to, x + 34, y + 4, "", names[i]);
    }
}

/* White at 0, dark blue at 1, in even steps of lightness, so that grey paper shows the same. */
static void shade(char *to, size_t size, double value)
{
    double v = fmin(fmax(value, 0), 1);
    snprintf(to, size, "#%02x%02x%02x", (unsigned)(255 - 247 * v), (unsigned)(255 - 207 * v),
             (unsigned)(255 - 148 * v));
}

void svg_cells(FILE *to, const char *title, const char *x_label, const char *y_label,
               const double *values, unsigned first, unsigned rows, unsigned columns, double most,
               const char *scale_label)
{
    double cell_x = 640.0 / columns, cell_y = rows > 40 ? 8 : 14;
    double height = cell_y * rows, width = cell_x * columns;
    char colour[16], text[64];
    open_figure(to, (unsigned)(LEFT + width + RIGHT), (unsigned)(TOP + height + 100), title);
    for (unsigned r = 0; r < rows; r++) {
        for (unsigned c = 0; c < columns; c++) {
            shade(colour, sizeof colour, values[r * columns + c] / most);
            fprintf(to,
                    "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n",
                    LEFT + cell_x * c, TOP + cell_y * r, cell_x + 0.1, cell_y + 0.1, colour);
        }
        if (r % (rows > 40 ? 8 : 4) != 0) continue;
        snprintf(text, sizeof text, "%u", first + r);
        label(to, LEFT - 8, TOP + cell_y * r + cell_y / 2 + 4, "text-anchor=\"end\"", text);
    }
    fprintf(to, "<rect class=\"axis\" x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%.1f\"/>\n", LEFT,
            TOP, width, height);
    label(to, LEFT + width / 2, TOP + height + 20, "text-anchor=\"middle\"", x_label);
    snprintf(text, sizeof text, "text-anchor=\"middle\" transform=\"rotate(-90 16 %.1f)\"",
             TOP + height / 2);
    label(to, 16, TOP + height / 2, text, y_label);
    for (unsigned i = 0; i <= 20; i++) {
        shade(colour, sizeof colour, i / 20.0);
        fprintf(to, "<rect x=\"%.1f\" y=\"%.1f\" width=\"12.1\" height=\"12\" fill=\"%s\"/>\n",
                LEFT + 12.0 * i, TOP + height + 44, colour);
    }
    fprintf(to, "<rect class=\"axis\" x=\"%d\" y=\"%.1f\" width=\"252\" height=\"12\"/>\n", LEFT,
            TOP + height + 44);
    label(to, LEFT, TOP + height + 72, "", "0");
    snprintf(text, sizeof text, "%.3g or more", most);
    label(to, LEFT + 252, TOP + height + 72, "text-anchor=\"end\"", text);
    label(to, LEFT + 264, TOP + height + 54, "", scale_label);
    fputs("</svg>\n", to);
}
