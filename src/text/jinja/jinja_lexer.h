/* Tokens of the template language. */
#ifndef ST_TEXT_JINJA_LEXER_H
#define ST_TEXT_JINJA_LEXER_H

#include "text/jinja/jinja_value.h"

typedef enum jtok {
    T_EOF,
    T_DATA,
    T_BLOCK_BEGIN,
    T_BLOCK_END,
    T_VAR_BEGIN,
    T_VAR_END,
    T_NAME,
    T_STRING,
    T_INT,
    T_FLOAT,
    T_ADD,
    T_SUB,
    T_MUL,
    T_DIV,
    T_FLOORDIV,
    T_MOD,
    T_POW,
    T_TILDE,
    T_EQ,
    T_NE,
    T_LT,
    T_LE,
    T_GT,
    T_GE,
    T_ASSIGN,
    T_DOT,
    T_COMMA,
    T_COLON,
    T_PIPE,
    T_SEMICOLON,
    T_LPAREN,
    T_RPAREN,
    T_LBRACKET,
    T_RBRACKET,
    T_LBRACE,
    T_RBRACE
} jtok;

typedef struct jtoken {
    jtok type;
    int line;
    const char *p; /* DATA, NAME, STRING (unescaped) */
    size_t len;
    int64_t i;
    double f;
} jtoken;

/* Splits text into tokens (the last is T_EOF), applying trim_blocks, lstrip_blocks and the `-`
 * and `+` marks. Texts of tokens point into text or into mem. */
ST_NODISCARD st_status jinja_lex(const char *name, const char *text, size_t len, jmem *mem,
                                 jtoken **tokens, size_t *n, st_error *err);

const char *jtok_name(jtok t); /* for errors: "'%}'", "a name" */

#endif
