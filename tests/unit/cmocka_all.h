/* cmocka and the headers it needs before it, in the order it needs them. STARLING_TEST_FILTER names
 * the functions to run, with * and ?; without it all run. A name that fits none is a failure: else
 * a renamed function would pass by not being there. */
#ifndef ST_TESTS_CMOCKA_ALL_H
#define ST_TESTS_CMOCKA_ALL_H

#include <fnmatch.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

static inline int run_filtered(const char *group, const struct CMUnitTest *tests, size_t n,
                               CMFixtureFunction setup, CMFixtureFunction teardown)
{
    const char *filter = getenv("STARLING_TEST_FILTER");
    size_t fits = 0;
    for (size_t i = 0; i < n; i++)
        fits += !filter || fnmatch(filter, tests[i].name, 0) == 0;
    if (fits == 0) {
        print_error("STARLING_TEST_FILTER=%s fits none of %zu test functions\n", filter, n);
        return 1;
    }
    cmocka_set_test_filter(filter);
    return _cmocka_run_group_tests(group, tests, n, setup, teardown);
}

#undef cmocka_run_group_tests
#define cmocka_run_group_tests(group, setup, teardown)                                             \
    run_filtered(#group, group, sizeof(group) / sizeof(group)[0], setup, teardown)

#endif
