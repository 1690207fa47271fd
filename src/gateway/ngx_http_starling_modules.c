/*
 * What nginx looks up in a dynamic module: the modules in it, their names, and
 * their order among others (content handlers need none).
 */

#include "ngx_http_starling.h"


/*
 * nginx has arrays of the same names. A sanitizer would take those, to which
 * the dynamic linker binds, for these, and put its guards into them.
 */

#if defined(__clang__)
#define NGX_HTTP_STARLING_BARE  __attribute__((no_sanitize("address")))
#else
#define NGX_HTTP_STARLING_BARE
#endif


extern ngx_module_t  *ngx_modules[];
extern char          *ngx_module_names[];
extern char          *ngx_module_order[];


NGX_HTTP_STARLING_BARE ngx_module_t *ngx_modules[] = {
    &ngx_http_starling_module,
    NULL
};


NGX_HTTP_STARLING_BARE char *ngx_module_names[] = {
    "ngx_http_starling_module",
    NULL
};


NGX_HTTP_STARLING_BARE char *ngx_module_order[] = {
    NULL
};
