/* What may follow `is`: tests. */
#include <string.h>

#include "text/jinja/jinja_eval.h"
#include "text/jinja/jinja_strings.h"

#define TEST(name) static bool name(jrt *rt, jval in, const jval *arg)

TEST(t_defined)
{
    return in.type != J_UNDEFINED;
}

TEST(t_undefined)
{
    return in.type == J_UNDEFINED;
}

TEST(t_none)
{
    return in.type == J_NONE;
}

TEST(t_boolean)
{
    return in.type == J_BOOL;
}

TEST(t_true)
{
    return in.type == J_BOOL && in.b;
}

TEST(t_false)
{
    return in.type == J_BOOL && !in.b;
}

TEST(t_integer)
{
    return in.type == J_INT;
}

TEST(t_float)
{
    return in.type == J_FLOAT;
}

TEST(t_number)
{
    return jv_is_number(in);
}

TEST(t_string)
{
    return in.type == J_STR;
}

TEST(t_mapping)
{
    return in.type == J_DICT;
}

TEST(t_sequence)
{
    return in.type == J_STR || in.type == J_LIST || in.type == J_TUPLE || in.type == J_DICT ||
           in.type == J_RANGE || in.type == J_UNDEFINED;
}

TEST(t_iterable)
{
    return t_sequence(rt, in, arg) || in.type == J_VIEW || in.type == J_GENERATOR ||
           in.type == J_LOOP;
}

TEST(t_callable)
{
    return in.type == J_MACRO || in.type == J_FUNCTION || in.type == J_METHOD ||
           in.type == J_LOOP || in.type == J_JOINER || in.type == J_UNDEFINED;
}

static bool remainder_of(jrt *rt, jval in, jval by, int64_t *out)
{
    jval r = jbinary(rt, OP_MOD, in, by);
    *out = rt->status ? -1 : r.type == J_FLOAT ? (r.f == 0 ? 0 : r.f == 1 ? 1 : 2) : jv_int(r);
    return jv_is_number(r);
}

TEST(t_even)
{
    int64_t r;
    return remainder_of(rt, in, j_int(2), &r) && r == 0;
}

TEST(t_odd)
{
    int64_t r;
    return remainder_of(rt, in, j_int(2), &r) && r == 1;
}

TEST(t_divisibleby)
{
    int64_t r;
    return remainder_of(rt, in, arg[0], &r) && r == 0;
}

TEST(t_in)
{
    return jv_in(rt, in, arg[0]);
}

TEST(t_eq)
{
    return jcompare(rt, OP_EQ, in, arg[0]);
}

TEST(t_ne)
{
    return jcompare(rt, OP_NE, in, arg[0]);
}

TEST(t_lt)
{
    return jcompare(rt, OP_LT, in, arg[0]);
}

TEST(t_le)
{
    return jcompare(rt, OP_LE, in, arg[0]);
}

TEST(t_gt)
{
    return jcompare(rt, OP_GT, in, arg[0]);
}

TEST(t_ge)
{
    return jcompare(rt, OP_GE, in, arg[0]);
}

/* Identity: of small values it is equality of type and value. */
TEST(t_sameas)
{
    if (in.type != arg[0].type)
        return false;
    if (jv_is_number(in) || in.type == J_STR || in.type == J_NONE || in.type == J_UNDEFINED)
        return jv_eq(rt, in, arg[0]);
    return in.l == arg[0].l;
}

static bool cased(jrt *rt, jval in, const char *method)
{
    const jstr *s = jv_str(rt, in);
    jstr name = {method, strlen(method), strlen(method)};
    const jmethod_def *m = jmethod_find(J_STR, &name);
    return s && m && m->fn(rt, j_str(s), &(jcall){0}, NULL).b;
}

TEST(t_lower)
{
    return cased(rt, in, "islower");
}

TEST(t_upper)
{
    return cased(rt, in, "isupper");
}

TEST(t_escaped)
{
    return false; /* nothing is: chat templates are not HTML */
}

TEST(t_filter)
{
    return in.type == J_STR && jinja_filter_find(in.s);
}

TEST(t_test)
{
    return in.type == J_STR && jinja_test_find(in.s);
}

const jtest_def *jinja_test_find(const jstr *name)
{
    static const jtest_def tests[] = {
        {"defined", "", t_defined},
        {"undefined", "", t_undefined},
        {"none", "", t_none},
        {"boolean", "", t_boolean},
        {"true", "", t_true},
        {"false", "", t_false},
        {"integer", "", t_integer},
        {"float", "", t_float},
        {"number", "", t_number},
        {"string", "", t_string},
        {"mapping", "", t_mapping},
        {"sequence", "", t_sequence},
        {"iterable", "", t_iterable},
        {"callable", "", t_callable},
        {"even", "", t_even},
        {"odd", "", t_odd},
        {"divisibleby", "num*", t_divisibleby},
        {"in", "seq*", t_in},
        {"eq", "other*", t_eq},
        {"equalto", "other*", t_eq},
        {"==", "other*", t_eq},
        {"ne", "other*", t_ne},
        {"!=", "other*", t_ne},
        {"lt", "other*", t_lt},
        {"lessthan", "other*", t_lt},
        {"<", "other*", t_lt},
        {"le", "other*", t_le},
        {"<=", "other*", t_le},
        {"gt", "other*", t_gt},
        {"greaterthan", "other*", t_gt},
        {">", "other*", t_gt},
        {"ge", "other*", t_ge},
        {">=", "other*", t_ge},
        {"sameas", "other*", t_sameas},
        {"lower", "", t_lower},
        {"upper", "", t_upper},
        {"escaped", "", t_escaped},
        {"filter", "", t_filter},
        {"test", "", t_test},
    };
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
        if (jstr_is(name, tests[i].name))
            return &tests[i];
    return NULL;
}
