/* The lexicon with kv_b_proj in INT8, which its own quantization leaves in BF16: in a folder under
 * /tmp. */
#ifndef ST_TESTS_LEXICON_KV_B_H
#define ST_TESTS_LEXICON_KV_B_H

/* source: models/lexicon/int8. dir gets the folder's name. */
void lexicon_kv_b_make(const char *source, char dir[64]);
void lexicon_kv_b_remove(const char *dir);

#endif
