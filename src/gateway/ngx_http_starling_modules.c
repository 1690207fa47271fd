/*
 * What nginx looks up in a dynamic module: the modules in it, their names, and
 * their order among others (content handlers need none).
 */

#include "ngx_http_starling.h"


extern ngx_module_t  *ngx_modules[];
extern char          *ngx_module_names[];
extern char          *ngx_module_order[];


ngx_module_t *ngx_modules[] = {
    &ngx_http_starling_module,
    NULL
};


char *ngx_module_names[] = {
    "ngx_http_starling_module",
    NULL
};


char *ngx_module_order[] = {
    NULL
};
