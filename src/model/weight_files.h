/* Which files of a checkpoint folder hold its weights, and which tensor is said to be in which. */
#ifndef ST_MODEL_WEIGHT_FILES_H
#define ST_MODEL_WEIGHT_FILES_H

#include <stdbool.h>
#include <stddef.h>

#include "starling/status.h"

typedef struct st_weight_files st_weight_files;

/* model.safetensors, else the folder's one *.safetensors.index.json (model.safetensors.index.json
 * first), else every *.safetensors file in the order of their names. File names in an index must
 * be plain names: no '/', nothing outside the folder. */
ST_NODISCARD st_status st_weight_files_find(const char *dir, st_weight_files **out, st_error *err);
void st_weight_files_free(st_weight_files *w); /* NULL is fine */
size_t st_weight_files_count(const st_weight_files *w);
const char *st_weight_files_path(const st_weight_files *w, size_t i);
/* File name of the index, or NULL. */
const char *st_weight_files_index(const st_weight_files *w);
/* The i-th row of the index's weight_map; false after the last (at once without an index). */
bool st_weight_files_mapping(const st_weight_files *w, size_t i, const char **tensor, size_t *file);

/* quant_model_description.json, where it exists: every weight must be FLOAT or W8A8_DYNAMIC. */
ST_NODISCARD st_status st_weight_files_check_description(const char *dir, st_error *err);

#endif
