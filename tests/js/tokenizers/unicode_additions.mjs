// Prints src/text/pretokenizer_unicode.h: the characters that Unicode assigned after version 14,
// which PCRE2 10.42 (Debian 12) does not know, by general category. Run with a recent Node:
//   node tests/js/tokenizers/unicode_additions.mjs > src/text/pretokenizer_unicode.h
import { execFileSync } from 'node:child_process';

const categories = ('Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So').split(' ');
const tests = categories.map((c) => new RegExp(`^\\p{${c}}$`, 'u'));
const han = /^\p{Script=Han}$/u;

// One line "first last" for every range that PCRE2 calls unassigned, from a program of ten lines.
const probe = `
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
int main(void) { int e, n; PCRE2_SIZE o; unsigned char b[4];
  pcre2_code *c = pcre2_compile((PCRE2_SPTR)"^\\\\p{Cn}", PCRE2_ZERO_TERMINATED, PCRE2_UTF, &e, &o, 0);
  pcre2_match_data *m = pcre2_match_data_create(1, 0);
  for (int u = 0x80; u < 0x110000; u++) { if (u >= 0xD800 && u < 0xE000) continue;
    if (u < 0x800) { b[0] = 0xC0 | u >> 6; n = 1; } else if (u < 0x10000) { b[0] = 0xE0 | u >> 12; n = 2; }
    else { b[0] = 0xF0 | u >> 18; n = 3; }
    for (int i = 1; i <= n; i++) b[i] = 0x80 | (u >> 6 * (n - i) & 63);
    if (pcre2_match(c, b, n + 1, 0, 0, m, 0) >= 0) printf("%d\\n", u); } }`;
execFileSync('gcc', ['-x', 'c', '-O2', '-', '-o', '/tmp/unassigned', '-lpcre2-8'], { input: probe });
const unassigned = execFileSync('/tmp/unassigned', { maxBuffer: 1 << 26 }).toString().split('\n');

const rows = [], hans = [];
const add = (list, u, kind) => {
  const last = list.at(-1);
  if (last && last[1] === u - 1 && last[2] === kind) last[1] = u;
  else list.push([u, u, kind]);
};
for (const line of unassigned) {
  if (line === '') continue;
  const u = Number(line), s = String.fromCodePoint(u);
  const k = tests.findIndex((re) => re.test(s));
  if (k >= 0) add(rows, u, categories[k]);
  if (han.test(s)) add(hans, u, 'Han');
}
const hex = (u) => '0x' + u.toString(16).toUpperCase();
console.log(`/* Characters assigned after Unicode 14, which PCRE2 10.42 takes for unassigned, by general
 * category (Unicode ${process.versions.unicode}). Printed by tests/js/tokenizers/unicode_additions.mjs. Adding a
 * range that a newer PCRE2 knows already changes nothing. */
#ifndef ST_TEXT_PRETOKENIZER_UNICODE_H
#define ST_TEXT_PRETOKENIZER_UNICODE_H

#include <stdint.h>

typedef struct st_unicode_range {
    uint32_t first, last;
    char category[4];
} st_unicode_range;

static const st_unicode_range st_unicode_additions[] = {`);
for (const [a, b, c] of rows) console.log(`    {${hex(a)}, ${hex(b)}, "${c}"},`);
console.log(`};

/* The same for the script Han. */
static const st_unicode_range st_unicode_additions_han[] = {`);
for (const [a, b, c] of hans) console.log(`    {${hex(a)}, ${hex(b)}, "${c}"},`);
console.log(`};

#endif`);
