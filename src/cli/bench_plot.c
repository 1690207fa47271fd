/* Draws benchmark curves with cairo (see bench_plot.h). cairo is loaded on demand: nothing but
 * --plot needs it. */
#include "cli/bench_plot.h"

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>

#define LIBRARY "libcairo.so.2"

/* What is used of cairo's interface, which has been stable since 1.0 (2005). */
typedef struct cairo cairo;
typedef struct cairo_surface cairo_surface;
enum { FORMAT_RGB24 = 1, SLANT_NORMAL = 0, WEIGHT_NORMAL = 0 };

typedef struct cairo_text_extents {
    double x_bearing, y_bearing, width, height, x_advance, y_advance;
} cairo_text_extents;

#define FUNCTIONS(X)                                                                               \
    X(cairo_surface *, image_surface_create, int format, int width, int height)                    \
    X(int, surface_write_to_png, cairo_surface *s, const char *path)                               \
    X(void, surface_destroy, cairo_surface *s)                                                     \
    X(cairo *, create, cairo_surface *s)                                                           \
    X(void, destroy, cairo *c)                                                                     \
    X(int, status, cairo *c)                                                                       \
    X(const char *, status_to_string, int status)                                                  \
    X(void, set_source_rgb, cairo *c, double r, double g, double b)                                \
    X(void, set_line_width, cairo *c, double w)                                                    \
    X(void, move_to, cairo *c, double x, double y)                                                 \
    X(void, line_to, cairo *c, double x, double y)                                                 \
    X(void, arc, cairo *c, double x, double y, double r, double from, double to)                   \
    X(void, stroke, cairo *c)                                                                      \
    X(void, fill, cairo *c)                                                                        \
    X(void, paint, cairo *c)                                                                       \
    X(void, select_font_face, cairo *c, const char *family, int slant, int weight)                 \
    X(void, set_font_size, cairo *c, double size)                                                  \
    X(void, text_extents, cairo *c, const char *text, cairo_text_extents *out)                     \
    X(void, show_text, cairo *c, const char *text)

static struct {
    void *handle;
#define DECLARE(result, name, ...) result (*name)(__VA_ARGS__);
    FUNCTIONS(DECLARE)
#undef DECLARE
} lib;

enum { WIDTH = 560, HEIGHT = 380, LEFT = 70, RIGHT = 24, TOP = 70, BOTTOM = 54, DOT = 4 };

void st_plot_add(st_plot_panel *p, double x, double y)
{
    if (p->n == ST_PLOT_MAX_POINTS)
        return;
    p->x[p->n] = x;
    p->y[p->n++] = y;
}

st_status st_plot_available(st_error *err)
{
    if (lib.handle)
        return ST_OK;
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return st_fail(err, ST_EUNSUPPORTED,
                       "a plot is drawn by cairo (Debian's package libcairo2), which cannot be "
                       "loaded: %s",
                       dlerror());
    const char *missing = NULL;
#define RESOLVE(result, name, ...)                                                                 \
    if (!(lib.name = (result(*)(__VA_ARGS__))dlsym(library, "cairo_" #name)))                      \
        missing = "cairo_" #name;
    FUNCTIONS(RESOLVE)
#undef RESOLVE
    if (missing) {
        dlclose(library);
        return st_fail(err, ST_EUNSUPPORTED, "%s has no function %s", LIBRARY, missing);
    }
    lib.handle = library;
    return ST_OK;
}

/* The next of 1, 2, 5, 10, 20, ... that is at least v. */
static double round_step(double v)
{
    double decade = pow(10, floor(log10(v)));
    return v <= decade       ? decade
           : v <= 2 * decade ? 2 * decade
           : v <= 5 * decade ? 5 * decade
                             : 10 * decade;
}

/* Text whose left end (0), middle (0.5) or right end (1) is at x. */
static void text_at(cairo *c, double x, double y, double align, const char *text)
{
    cairo_text_extents e;
    lib.text_extents(c, text, &e);
    lib.move_to(c, x - align * e.x_advance, y);
    lib.show_text(c, text);
}

static void line(cairo *c, double x0, double y0, double x1, double y1)
{
    lib.move_to(c, x0, y0);
    lib.line_to(c, x1, y1);
    lib.stroke(c);
}

static double highest(const st_plot_panel *p)
{
    double top = 0;
    for (int i = 0; i < p->n; i++)
        top = p->y[i] > top ? p->y[i] : top;
    return top > 0 ? top : 1;
}

/* Points are evenly spaced: depths and batches rise by factors. */
static double x_of(const st_plot_panel *p, double left, int i)
{
    double width = WIDTH - LEFT - RIGHT;
    return p->n > 1 ? left + LEFT + width * (0.04 + 0.92 * i / (p->n - 1))
                    : left + LEFT + width / 2;
}

static void draw_axes(cairo *c, const st_plot_panel *p, double left, double step, double top)
{
    char label[32];
    double height = HEIGHT - TOP - BOTTOM;
    lib.set_font_size(c, 12);
    for (double v = 0; v <= top * 1.0001; v += step) {
        double y = HEIGHT - BOTTOM - height * v / top;
        lib.set_source_rgb(c, 0.85, 0.85, 0.85);
        lib.set_line_width(c, 1);
        line(c, left + LEFT, y, left + WIDTH - RIGHT, y);
        lib.set_source_rgb(c, 0.2, 0.2, 0.2);
        snprintf(label, sizeof label, "%g", v);
        text_at(c, left + LEFT - 8, y + 4, 1, label);
    }
    for (int i = 0; i < p->n; i++) {
        snprintf(label, sizeof label, "%g", p->x[i]);
        text_at(c, x_of(p, left, i), HEIGHT - BOTTOM + 18, 0.5, label);
    }
    text_at(c, left + (WIDTH + LEFT - RIGHT) / 2.0, HEIGHT - 14, 0.5, p->x_label);
    lib.set_font_size(c, 14);
    text_at(c, left + LEFT, TOP - 16, 0, p->title);
}

static void draw_curve(cairo *c, const st_plot_panel *p, double left, double top)
{
    double height = HEIGHT - TOP - BOTTOM;
    char label[32];
    lib.set_line_width(c, 2);
    lib.set_font_size(c, 11);
    for (int i = 0; i < p->n; i++) {
        double x = x_of(p, left, i), y = HEIGHT - BOTTOM - height * p->y[i] / top;
        lib.set_source_rgb(c, 0.12, 0.35, 0.65);
        if (i > 0)
            line(c, x_of(p, left, i - 1), HEIGHT - BOTTOM - height * p->y[i - 1] / top, x, y);
        lib.arc(c, x, y, DOT, 0, 6.2832);
        lib.fill(c);
        lib.set_source_rgb(c, 0.2, 0.2, 0.2);
        snprintf(label, sizeof label, "%.*f", p->y[i] < 100 ? 1 : 0, p->y[i]);
        text_at(c, x, y - 9, 0.5, label);
    }
}

static void draw_panel(cairo *c, const st_plot_panel *p, double left)
{
    double step = round_step(highest(p) / 5), top = step * ceil(highest(p) * 1.05 / step);
    draw_axes(c, p, left, step, top);
    draw_curve(c, p, left, top);
}

st_status st_plot_write(const char *path, const char *heading, const st_plot_panel *panels,
                        int n_panels, st_error *err)
{
    st_status s = st_plot_available(err);
    if (s)
        return s;
    cairo_surface *surface = lib.image_surface_create(FORMAT_RGB24, WIDTH * n_panels, HEIGHT);
    cairo *c = lib.create(surface);
    lib.set_source_rgb(c, 1, 1, 1);
    lib.paint(c);
    lib.select_font_face(c, "sans-serif", SLANT_NORMAL, WEIGHT_NORMAL);
    lib.set_source_rgb(c, 0.1, 0.1, 0.1);
    lib.set_font_size(c, 15);
    text_at(c, 20, 26, 0, heading);
    for (int i = 0; i < n_panels; i++)
        draw_panel(c, &panels[i], (double)i * WIDTH);
    int failed = lib.status(c);
    if (!failed)
        failed = lib.surface_write_to_png(surface, path);
    if (failed)
        s = st_fail(err, ST_EIO, "%s: the plot cannot be written: %s", path,
                    lib.status_to_string(failed));
    lib.destroy(c);
    lib.surface_destroy(surface);
    return s;
}
