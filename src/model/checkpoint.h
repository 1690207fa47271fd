/* A published checkpoint folder, opened: config.json understood, every tensor found by name in the
 * mapped safetensors files. Nothing is copied; tensor data lives as long as the checkpoint. */
#ifndef ST_MODEL_CHECKPOINT_H
#define ST_MODEL_CHECKPOINT_H

#include "starling/model.h"

typedef struct st_tensor {
    const char *name;
    const char *file; /* path of the file that holds it, for error texts */
    st_dtype dtype;
    int32_t rank; /* 0..4 */
    int64_t shape[4];
    const void *data; /* may be unaligned for its type: the format promises nothing */
    size_t bytes;
} st_tensor;

typedef struct st_checkpoint st_checkpoint;

/* Opens dir: config.json, generation_config.json (optional), and the weights: model.safetensors,
 * else the files that the folder's *.safetensors.index.json names, else every *.safetensors file.
 * Checks every header completely: sizes, offsets (inside the file, no overlap, no hole), dtypes,
 * shapes, duplicate names, index against files. A file cut short by somebody else after this
 * call is not survived: reading its missing pages raises SIGBUS. */
ST_NODISCARD st_status st_checkpoint_open(const char *dir, st_checkpoint **out, st_error *err);
void st_checkpoint_free(st_checkpoint *c);
const st_model_config *st_checkpoint_config(const st_checkpoint *c);
const char *st_checkpoint_dir(const st_checkpoint *c);
/* NULL when there is no such tensor. */
const st_tensor *st_checkpoint_find(const st_checkpoint *c, const char *name);
/* Iteration in file order; the tensors lie in one array, st_checkpoint_at(c, 0). */
size_t st_checkpoint_count(const st_checkpoint *c);
const st_tensor *st_checkpoint_at(const st_checkpoint *c, size_t i);
size_t st_checkpoint_total_bytes(const st_checkpoint *c);
/* The number of the layer that a tensor name belongs to ("model.layers.12.mlp..."), or -1. */
int32_t st_tensor_layer(const char *name);
/* Of config, tensor names, dtypes, shapes and samples of the data, so that two fine-tunes of one
 * model differ too. */
uint64_t st_checkpoint_fingerprint(const st_checkpoint *c);

/* Of the fingerprint and of every weight file: its name, size, time of change and header. What was
 * made from a checkpoint with another stamp is stale. */
uint64_t st_checkpoint_stamp(const st_checkpoint *c);
/* Lets the system take back the memory of a tensor's pages, which are read again when needed. t is
 * one of this checkpoint's. */
void st_checkpoint_release(const st_checkpoint *c, const st_tensor *t);
/* Has the system begin to read a tensor that will be used where it lies: otherwise its rows come
 * from the disk one by one, each when it is first met. */
void st_checkpoint_want(const st_tensor *t);

/* Config alone, from JSON texts (generation may be NULL); for tests and fuzzing. */
ST_NODISCARD st_status st_model_config_parse(const char *json, size_t len, const char *generation,
                                             size_t generation_len, st_model_config *out,
                                             st_error *err);

/* One safetensors file in memory, checked; calls found for each tensor in offset order (its name
 * is valid during the call). A non-OK result of found ends the parse with that status. */
typedef st_status st_safetensors_fn(void *user, const st_tensor *t);
ST_NODISCARD st_status st_safetensors_parse(const char *path, const void *data, size_t len,
                                            st_safetensors_fn *found, void *user, st_error *err);

#endif
