/* Finds the weight files of a checkpoint folder: see weight_files.h. */
#include "model/weight_files.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/arena.h"
#include "model/folder_file.h"

/* A 700B model's index names some 100,000 tensors in about 10 MB. */
#define MAX_INDEX ((size_t)256 << 20)
#define MAX_FILES 16384

typedef struct mapping {
    const char *tensor;
    size_t file;
} mapping;

struct st_weight_files {
    st_arena *arena; /* every string below */
    const char *index;
    const char **paths;
    size_t n_paths, cap_paths;
    mapping *map;
    size_t n_map;
};

static bool ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), m = strlen(tail);
    return n > m && strcmp(s + n - m, tail) == 0;
}

/* Returns the position of dir/name in paths, added when new; SIZE_MAX when memory is short. Index
 * files list tensors file by file, so the search from the end is short. */
static size_t add_path(st_weight_files *w, const char *dir, const char *name)
{
    size_t dir_len = strlen(dir), name_len = strlen(name);
    for (size_t i = w->n_paths; i-- > 0;)
        if (strcmp(w->paths[i] + dir_len + 1, name) == 0)
            return i;
    if (w->n_paths == w->cap_paths) {
        size_t cap = w->cap_paths ? 2 * w->cap_paths : 16;
        const char **p = realloc(w->paths, cap * sizeof *p);
        if (!p)
            return SIZE_MAX;
        w->paths = p;
        w->cap_paths = cap;
    }
    char *path = st_arena_alloc(w->arena, dir_len + name_len + 2);
    if (!path)
        return SIZE_MAX;
    memcpy(path, dir, dir_len);
    path[dir_len] = '/';
    memcpy(path + dir_len + 1, name, name_len + 1);
    w->paths[w->n_paths] = path;
    return w->n_paths++;
}

static st_status no_memory(const char *dir, st_error *err)
{
    return st_fail(err, ST_ENOMEM, "%s: no memory for the list of weight files", dir);
}

/* --- the index --------------------------------------------------------------------------- */

static st_status check_file_name(const char *dir, const char *index, const char *tensor,
                                 json_t *file, st_error *err)
{
    if (!json_is_string(file))
        return st_fail(err, ST_EFORMAT, "%s/%s: weight_map[\"%.160s\"] is not a file name", dir,
                       index, tensor);
    const char *name = json_string_value(file);
    if (strchr(name, '/') || strcmp(name, "..") == 0 || !ends_with(name, ".safetensors"))
        return st_fail(err, ST_EFORMAT,
                       "%s/%s: weight_map[\"%.160s\"] is '%.160s'; expected the name of a "
                       ".safetensors file in the same folder",
                       dir, index, tensor, name);
    return ST_OK;
}

static st_status take_map(st_weight_files *w, const char *dir, json_t *map, st_error *err)
{
    w->map = calloc(json_object_size(map), sizeof *w->map);
    if (!w->map)
        return no_memory(dir, err);
    const char *tensor;
    json_t *file;
    json_object_foreach(map, tensor, file)
    {
        st_status s = check_file_name(dir, w->index, tensor, file, err);
        if (s)
            return s;
        mapping *m = &w->map[w->n_map];
        m->file = add_path(w, dir, json_string_value(file));
        m->tensor = st_arena_strdup(w->arena, tensor, strlen(tensor));
        if (m->file == SIZE_MAX || !m->tensor)
            return no_memory(dir, err);
        w->n_map++;
        if (w->n_paths > MAX_FILES)
            return st_fail(err, ST_EFORMAT, "%s/%s: weight_map names more than %d files", dir,
                           w->index, MAX_FILES);
    }
    return ST_OK;
}

static st_status load_json(const char *dir, const char *name, json_t **root, st_error *err)
{
    st_buf text = ST_BUF_INIT;
    json_error_t je;
    st_status s = st_folder_file_read(dir, name, MAX_INDEX, &text, err);
    if (s == ST_OK && !(*root = json_loadb(text.data, text.len, JSON_REJECT_DUPLICATES, &je)))
        s = st_fail(err, ST_EFORMAT, "%s/%s: broken JSON in line %d: %s", dir, name, je.line,
                    je.text);
    st_buf_free(&text);
    return s;
}

static st_status read_index(st_weight_files *w, const char *dir, const char *name, st_error *err)
{
    json_t *root = NULL;
    w->index = st_arena_strdup(w->arena, name, strlen(name));
    if (!w->index)
        return no_memory(dir, err);
    st_status s = load_json(dir, name, &root, err);
    if (s == ST_OK) {
        json_t *map = json_object_get(root, "weight_map");
        if (json_object_size(map) == 0)
            s = st_fail(err, ST_EFORMAT, "%s/%s: weight_map is missing or empty", dir, name);
        else
            s = take_map(w, dir, map, err);
    }
    json_decref(root);
    return s;
}

/* --- the folder -------------------------------------------------------------------------- */

static int is_index(const struct dirent *e)
{
    return ends_with(e->d_name, ".safetensors.index.json");
}

static int is_weights(const struct dirent *e)
{
    return ends_with(e->d_name, ".safetensors");
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static void free_names(struct dirent **names, int n)
{
    for (int i = 0; i < n; i++)
        free(names[i]);
    free(names);
}

static st_status take_every_file(st_weight_files *w, const char *dir, st_error *err)
{
    struct dirent **names = NULL;
    int n = scandir(dir, &names, is_weights, by_name);
    if (n < 0)
        return st_fail(err, ST_EIO, "%s: cannot be listed: %s", dir, strerror(errno));
    st_status s = ST_OK;
    if (n == 0)
        s = st_fail(err, ST_ENOTFOUND,
                    "%s: no weights: expected model.safetensors, or several .safetensors files "
                    "with model.safetensors.index.json",
                    dir);
    for (int i = 0; i < n && s == ST_OK; i++)
        if (add_path(w, dir, names[i]->d_name) == SIZE_MAX)
            s = no_memory(dir, err);
    free_names(names, n);
    return s;
}

static st_status find(st_weight_files *w, const char *dir, st_error *err)
{
    static const char single[] = "model.safetensors", index[] = "model.safetensors.index.json";
    if (st_folder_file_exists(dir, single))
        return add_path(w, dir, single) == SIZE_MAX ? no_memory(dir, err) : ST_OK;
    if (st_folder_file_exists(dir, index))
        return read_index(w, dir, index, err);
    struct dirent **names = NULL;
    int n = scandir(dir, &names, is_index, by_name);
    if (n < 0)
        return st_fail(err, ST_EIO, "%s: cannot be listed: %s", dir, strerror(errno));
    st_status s;
    if (n > 1)
        s = st_fail(err, ST_EFORMAT, "%s: more than one index of weights: %s and %s", dir,
                    names[0]->d_name, names[1]->d_name);
    else
        s = n == 1 ? read_index(w, dir, names[0]->d_name, err) : take_every_file(w, dir, err);
    free_names(names, n);
    return s;
}

st_status st_weight_files_find(const char *dir, st_weight_files **out, st_error *err)
{
    st_weight_files *w = calloc(1, sizeof *w);
    *out = NULL;
    if (!w || !(w->arena = st_arena_new(0))) {
        st_weight_files_free(w);
        return no_memory(dir, err);
    }
    st_status s = find(w, dir, err);
    if (s)
        st_weight_files_free(w);
    else
        *out = w;
    return s;
}

void st_weight_files_free(st_weight_files *w)
{
    if (!w)
        return;
    free(w->paths);
    free(w->map);
    st_arena_free(w->arena);
    free(w);
}

size_t st_weight_files_count(const st_weight_files *w)
{
    return w->n_paths;
}

const char *st_weight_files_path(const st_weight_files *w, size_t i)
{
    return w->paths[i];
}

const char *st_weight_files_index(const st_weight_files *w)
{
    return w->index;
}

bool st_weight_files_mapping(const st_weight_files *w, size_t i, const char **tensor, size_t *file)
{
    if (i >= w->n_map)
        return false;
    *tensor = w->map[i].tensor;
    *file = w->map[i].file;
    return true;
}

/* --- quant_model_description.json -------------------------------------------------------- */

st_status st_weight_files_check_description(const char *dir, st_error *err)
{
    static const char name[] = "quant_model_description.json";
    if (!st_folder_file_exists(dir, name))
        return ST_OK;
    json_t *root = NULL;
    st_status s = load_json(dir, name, &root, err);
    const char *key;
    json_t *value;
    json_object_foreach(root, key, value)
    {
        const char *kind = json_string_value(value);
        if (s == ST_OK && ends_with(key, ".weight") &&
            (!kind || (strcmp(kind, "FLOAT") != 0 && strcmp(kind, "W8A8_DYNAMIC") != 0)))
            s = st_fail(err, ST_EUNSUPPORTED,
                        "%s/%s: %.160s is %s; supported are FLOAT and W8A8_DYNAMIC", dir, name, key,
                        kind ? kind : "no text");
    }
    json_decref(root);
    return s;
}
