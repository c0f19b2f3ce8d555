/* Plots as inline SVG: axes with labels, lines with markers, cells. Colours are those of Okabe and
 * Ito, told apart by the colour-blind; lines differ in dash and marker too, so that they do on
 * paper. One FILE, no state besides the plot. */
#ifndef TOOLS_SVG_H
#define TOOLS_SVG_H

#include <stdint.h>
#include <stdio.h>

struct svg_plot {
    FILE *to;
    const char *title, *x_label, *y_label;
    double x_min, x_max, y_min, y_max;
    double x_step, y_step;       /* between ticks */
    const char *x_unit, *y_unit; /* behind the numbers of ticks: "%", "" */
    unsigned width, height;      /* of the area of the data */
};

enum { SVG_SERIES_MAX = 10 };

/* Opens the figure and draws its axes; end closes it. */
void svg_begin(const struct svg_plot *plot);
void svg_end(const struct svg_plot *plot);
/* A line through the points in the look of `series`; markers on each when there are few. */
void svg_line(const struct svg_plot *plot, unsigned series, const double *x, const double *y,
              unsigned count);
/* Small text beside a point. */
void svg_note(const struct svg_plot *plot, double x, double y, const char *text);
/* The names of the series, in columns below the plot; series NULL = 0, 1, 2, ... */
void svg_legend(const struct svg_plot *plot, const unsigned *series, const char *const *names,
                unsigned count);
/* Text with &, < and > made harmless. */
void svg_text(FILE *to, const char *text);

/* A grid of rows x columns cells, rows numbered from `first` on, values from 0 to `most` on a scale
 * from white to dark blue. */
void svg_cells(FILE *to, const char *title, const char *x_label, const char *y_label,
               const double *values, unsigned first, unsigned rows, unsigned columns, double most,
               const char *scale_label);

#endif
