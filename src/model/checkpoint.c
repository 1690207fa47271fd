/* Opens a checkpoint folder: configuration, weight files (mapped), tensors by name. See
 * checkpoint.h; the containers are parsed in safetensors.c, the file list in weight_files.c. */
#include "model/checkpoint.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#include "base/arena.h"
#include "base/regular_file.h"
#include "model/folder_file.h"
#include "model/weight_files.h"

#define MAX_CONFIG ((size_t)16 << 20)

typedef struct mapped_file {
    const char *path;
    void *data;
    size_t size;
    struct timespec changed;
} mapped_file;

struct st_checkpoint {
    st_arena *arena; /* names, paths */
    const char *dir;
    st_model_config config;
    st_weight_files *listing;
    mapped_file *files;
    size_t n_files;
    st_tensor *tensors;
    size_t n_tensors, cap_tensors;
    uint32_t *slots; /* open addressing: index + 1 into tensors, 0 empty; mask + 1 slots */
    size_t mask;
    size_t total_bytes;
    uint64_t fingerprint;
};

/* --- names ------------------------------------------------------------------------------- */

static size_t slot_of(const st_checkpoint *c, const char *name)
{
    size_t at = XXH3_64bits(name, strlen(name)) & c->mask;
    while (c->slots[at] && strcmp(c->tensors[c->slots[at] - 1].name, name) != 0)
        at = (at + 1) & c->mask;
    return at;
}

/* Builds the name table once all files are read; a name seen twice is an error. */
static st_status index_names(st_checkpoint *c, st_error *err)
{
    size_t slots = 16;
    while (slots < 2 * c->n_tensors)
        slots *= 2;
    c->slots = calloc(slots, sizeof *c->slots);
    if (!c->slots)
        return st_fail(err, ST_ENOMEM, "%s: no memory for %zu tensor names", c->dir, c->n_tensors);
    c->mask = slots - 1;
    for (size_t i = 0; i < c->n_tensors; i++) {
        const st_tensor *t = &c->tensors[i];
        size_t at = slot_of(c, t->name);
        if (c->slots[at])
            return st_fail(err, ST_EFORMAT, "tensor %s is in two files: %s and %s", t->name,
                           c->tensors[c->slots[at] - 1].file, t->file);
        c->slots[at] = (uint32_t)i + 1;
    }
    return ST_OK;
}

const st_tensor *st_checkpoint_find(const st_checkpoint *c, const char *name)
{
    uint32_t i = c->slots[slot_of(c, name)];
    return i ? &c->tensors[i - 1] : NULL;
}

int32_t st_tensor_layer(const char *name)
{
    static const char prefix[] = "model.layers.";
    if (strncmp(name, prefix, sizeof prefix - 1) != 0)
        return -1;
    const char *p = name + sizeof prefix - 1;
    int32_t layer = 0, digits = 0;
    for (; *p >= '0' && *p <= '9' && digits < 9; p++, digits++)
        layer = layer * 10 + (*p - '0');
    return digits && *p == '.' ? layer : -1;
}

/* --- files ------------------------------------------------------------------------------- */

static st_status map_file(mapped_file *f, st_error *err)
{
    struct stat sb;
    int fd;
    st_status s = st_regular_file_open(f->path, &fd, &sb, err);
    if (s)
        return s;
    if (sb.st_size < 8) {
        s = st_fail(err, ST_EFORMAT,
                    "%s: the file has %lld bytes; a safetensors file starts with an 8-byte header "
                    "length",
                    f->path, (long long)sb.st_size);
    } else {
        void *p = mmap(NULL, (size_t)sb.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            s = st_fail(err, errno == ENOMEM ? ST_ENOMEM : ST_EIO,
                        "%s: %lld bytes cannot be mapped: %s", f->path, (long long)sb.st_size,
                        strerror(errno));
        } else {
            f->data = p;
            f->size = (size_t)sb.st_size;
            f->changed = sb.st_mtim;
        }
    }
    close(fd);
    return s;
}

static st_status add_tensor(void *user, const st_tensor *t)
{
    st_checkpoint *c = user;
    if (c->n_tensors == c->cap_tensors) {
        size_t cap = c->cap_tensors ? 2 * c->cap_tensors : 1024;
        st_tensor *p = realloc(c->tensors, cap * sizeof *p);
        if (!p)
            return ST_ENOMEM;
        c->tensors = p;
        c->cap_tensors = cap;
    }
    st_tensor *mine = &c->tensors[c->n_tensors];
    *mine = *t;
    mine->name = st_arena_strdup(c->arena, t->name, strlen(t->name));
    if (!mine->name)
        return ST_ENOMEM;
    c->n_tensors++;
    c->total_bytes += t->bytes;
    return ST_OK;
}

static st_status open_files(st_checkpoint *c, st_error *err)
{
    st_status s = st_weight_files_find(c->dir, &c->listing, err);
    if (s)
        return s;
    size_t n = st_weight_files_count(c->listing);
    c->files = calloc(n + 1, sizeof *c->files);
    if (!c->files)
        return st_fail(err, ST_ENOMEM, "%s: no memory for %zu weight files", c->dir, n);
    for (size_t i = 0; i < n; i++) {
        mapped_file *f = &c->files[i];
        f->path = st_weight_files_path(c->listing, i);
        c->n_files = i + 1;
        if ((s = map_file(f, err)))
            return s;
        st_error inner = {0};
        s = st_safetensors_parse(f->path, f->data, f->size, add_tensor, c, &inner);
        if (s)
            return inner.text[0] ? st_fail(err, s, "%s", inner.text)
                                 : st_fail(err, s, "%s: no memory for its tensors", f->path);
    }
    return ST_OK;
}

/* Every tensor that the index names must be in the file it is said to be in. */
static st_status check_index(st_checkpoint *c, st_error *err)
{
    const char *name;
    size_t file;
    for (size_t i = 0; st_weight_files_mapping(c->listing, i, &name, &file); i++) {
        const st_tensor *t = st_checkpoint_find(c, name);
        const char *path = st_weight_files_path(c->listing, file);
        if (!t)
            return st_fail(err, ST_EFORMAT, "%s: tensor %s is not in this file, where %s puts it",
                           path, name, st_weight_files_index(c->listing));
        if (strcmp(t->file, path) != 0)
            return st_fail(err, ST_EFORMAT, "tensor %s is in %s, but %s puts it in %s", name,
                           t->file, st_weight_files_index(c->listing), path);
    }
    return ST_OK;
}

/* --- configuration ----------------------------------------------------------------------- */

static st_status read_config(st_checkpoint *c, XXH3_state_t *hash, st_error *err)
{
    st_buf config = ST_BUF_INIT, generation = ST_BUF_INIT;
    st_status s = st_folder_file_read(c->dir, "config.json", MAX_CONFIG, &config, err);
    if (s)
        goto done;
    st_error ignored;
    s = st_folder_file_read(c->dir, "generation_config.json", MAX_CONFIG, &generation, &ignored);
    if (s && s != ST_ENOTFOUND) {
        if (err)
            *err = ignored;
        goto done;
    }
    s = st_model_config_parse(config.data, config.len, generation.data, generation.len, &c->config,
                              err);
    if (s)
        st_fail_prefix(err, s, "%s", c->dir);
    XXH3_64bits_update(hash, config.data, config.len);
done:
    st_buf_free(&config);
    st_buf_free(&generation);
    return s;
}

static bool ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), m = strlen(tail);
    return n >= m && strcmp(s + n - m, tail) == 0;
}

static bool is_integer(const st_tensor *t)
{
    return ends_with(t->name, ".weight_packed") || ends_with(t->name, ".qweight") ||
           (t->dtype == ST_I8 && ends_with(t->name, ".weight"));
}

/* What only the tensors tell: the dialect of quant_model_description.json says nothing in
 * config.json, and which layers are quantized differs. */
static void note_integers(st_checkpoint *c)
{
    for (size_t i = 0; i < c->n_tensors; i++) {
        const st_tensor *t = &c->tensors[i];
        if (!is_integer(t))
            continue;
        if (t->dtype == ST_I8) {
            if (c->config.quant.method == ST_QUANT_NONE)
                c->config.quant.method = ST_QUANT_W8A8;
            c->config.int8_activations = true;
        }
        c->config.integer_kv_b |= strstr(t->name, ".kv_b_proj.") != NULL;
    }
}

/* Samples of a few tensors: a bounded number of page reads whatever the size of the checkpoint. */
static void hash_samples(const st_checkpoint *c, XXH3_state_t *hash)
{
    size_t step = c->n_tensors / 64 + 1;
    for (size_t i = 0; i < c->n_tensors; i += step) {
        const st_tensor *t = &c->tensors[i];
        size_t n = t->bytes < 64 ? t->bytes : 64;
        XXH3_64bits_update(hash, (const char *)t->data + (t->bytes - n) / 2, n);
    }
}

static void hash_metadata(const st_checkpoint *c, XXH3_state_t *hash)
{
    for (size_t i = 0; i < c->n_tensors; i++) {
        const st_tensor *t = &c->tensors[i];
        int64_t key[6] = {t->dtype, t->rank, t->shape[0], t->shape[1], t->shape[2], t->shape[3]};
        XXH3_64bits_update(hash, t->name, strlen(t->name) + 1);
        XXH3_64bits_update(hash, key, sizeof key);
    }
}

/* --- open and close ---------------------------------------------------------------------- */

static st_status open_checkpoint(st_checkpoint *c, XXH3_state_t *hash, st_error *err)
{
    struct stat sb;
    if (stat(c->dir, &sb) != 0)
        return st_fail(err, errno == ENOENT ? ST_ENOTFOUND : ST_EIO,
                       "%s: no checkpoint folder there: %s", c->dir, strerror(errno));
    if (!S_ISDIR(sb.st_mode))
        return st_fail(err, ST_EINVAL,
                       "%s: not a folder; name the folder that holds config.json and the "
                       "safetensors files",
                       c->dir);
    st_status s;
    if ((s = read_config(c, hash, err)) || (s = st_weight_files_check_description(c->dir, err)) ||
        (s = open_files(c, err)) || (s = index_names(c, err)) || (s = check_index(c, err)))
        return s;
    note_integers(c);
    hash_metadata(c, hash);
    hash_samples(c, hash);
    c->fingerprint = XXH3_64bits_digest(hash);
    return ST_OK;
}

st_status st_checkpoint_open(const char *dir, st_checkpoint **out, st_error *err)
{
    *out = NULL;
    st_status s = ST_ENOMEM;
    XXH3_state_t *hash = XXH3_createState();
    st_checkpoint *c = calloc(1, sizeof *c);
    if (!c || !hash || !(c->arena = st_arena_new(0)) ||
        !(c->dir = st_arena_strdup(c->arena, dir, strlen(dir)))) {
        st_fail(err, s, "%s: no memory to open it", dir);
        goto done;
    }
    XXH3_64bits_reset(hash);
    s = open_checkpoint(c, hash, err);
    if (s == ST_OK) {
        *out = c;
        c = NULL;
    }
done:
    st_checkpoint_free(c);
    XXH3_freeState(hash);
    return s;
}

void st_checkpoint_free(st_checkpoint *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->n_files; i++)
        if (c->files[i].data)
            munmap(c->files[i].data, c->files[i].size);
    free(c->files);
    free(c->tensors);
    free(c->slots);
    st_weight_files_free(c->listing);
    st_arena_free(c->arena);
    free(c);
}

const st_model_config *st_checkpoint_config(const st_checkpoint *c)
{
    return &c->config;
}

const char *st_checkpoint_dir(const st_checkpoint *c)
{
    return c->dir;
}

size_t st_checkpoint_count(const st_checkpoint *c)
{
    return c->n_tensors;
}

const st_tensor *st_checkpoint_at(const st_checkpoint *c, size_t i)
{
    return &c->tensors[i];
}

size_t st_checkpoint_total_bytes(const st_checkpoint *c)
{
    return c->total_bytes;
}

uint64_t st_checkpoint_fingerprint(const st_checkpoint *c)
{
    return c->fingerprint;
}

uint64_t st_checkpoint_stamp(const st_checkpoint *c)
{
    XXH64_hash_t stamp = c->fingerprint;
    for (size_t i = 0; i < c->n_files; i++) {
        const mapped_file *f = &c->files[i];
        const char *slash = strrchr(f->path, '/'), *name = slash ? slash + 1 : f->path;
        uint64_t facts[3] = {f->size, (uint64_t)f->changed.tv_sec, (uint64_t)f->changed.tv_nsec};
        uint64_t header; /* its length, which was checked against the file */
        memcpy(&header, f->data, sizeof header);
        stamp = XXH3_64bits_withSeed(name, strlen(name), stamp);
        stamp = XXH3_64bits_withSeed(facts, sizeof facts, stamp);
        stamp = XXH3_64bits_withSeed(f->data, sizeof header + (size_t)header, stamp);
    }
    return stamp;
}

void st_checkpoint_release(const st_checkpoint *c, const st_tensor *t)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)t->data;
    uintptr_t end = (begin + t->bytes) / page * page;
    begin = (begin + page - 1) / page * page;
    /* Of pages that no one wrote to: what is dropped is in the file. */
    if (t >= c->tensors && t < c->tensors + c->n_tensors && begin < end)
        (void)madvise((void *)begin, end - begin, MADV_DONTNEED);
}

void st_checkpoint_want(const st_tensor *t)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)t->data;
    uintptr_t end = begin + t->bytes;
    begin = begin / page * page;
    (void)madvise((void *)begin, end - begin, MADV_WILLNEED);
}
