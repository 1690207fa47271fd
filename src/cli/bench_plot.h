/* The picture of `starling bench --plot`: tokens/s against context depth, and against batch. */
#ifndef ST_CLI_BENCH_PLOT_H
#define ST_CLI_BENCH_PLOT_H

#include "starling/status.h"

enum { ST_PLOT_MAX_POINTS = 32 };

/* One panel: a curve through n points, x rising. */
typedef struct st_plot_panel {
    const char *title, *x_label;
    int n;
    double x[ST_PLOT_MAX_POINTS], y[ST_PLOT_MAX_POINTS];
} st_plot_panel;

/* Points beyond ST_PLOT_MAX_POINTS are left out. */
void st_plot_add(st_plot_panel *p, double x, double y);
/* Whether st_plot_write will find its library (cairo, loaded when first asked for):
 * ST_EUNSUPPORTED says which package is missing. To be asked before the measurement, not after. */
ST_NODISCARD st_status st_plot_available(st_error *err);
/* Writes the panels side by side into a PNG file, y in tokens/s from zero. */
ST_NODISCARD st_status st_plot_write(const char *path, const char *heading,
                                     const st_plot_panel *panels, int n_panels, st_error *err);

#endif
