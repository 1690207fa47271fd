/* cmocka and the headers it needs before it, in the order it needs them. STARLING_TEST_FILTER names
 * the functions to run, with * and ?; without it all run. */
#ifndef ST_TESTS_CMOCKA_ALL_H
#define ST_TESTS_CMOCKA_ALL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

__attribute__((constructor)) static void filter_tests(void)
{
    cmocka_set_test_filter(getenv("STARLING_TEST_FILTER"));
}

#endif
