/* How much memory a model takes, predicted from its configuration and tensor list before anything
 * large is taken. */
#ifndef ST_MODEL_MEMORY_H
#define ST_MODEL_MEMORY_H

#include "kernels/kernels.h"
#include "model/checkpoint.h"

/* Bytes. Pages of files count like others: the system may drop and read them again, but a model
 * whose weights do not stay in memory runs at the speed of the disk. */
typedef struct st_memory_need {
    size_t packed;   /* weights as the kernels take them */
    size_t rows;     /* the mapped embedding; nothing else of the files is read again */
    size_t prepared; /* float norms and biases, tables of layers and tensors */
    size_t working;  /* a step's arrays, and what threads need to expand latents */
    size_t total;
    bool shared; /* packed lies in a file that engines of this machine share */
} st_memory_need;

/* What a step may be, and what runs it. */
typedef struct st_memory_steps {
    const st_kernels *k;
    int threads;
    int32_t max_batch_tokens, max_outputs; /* as in st_model_options, resolved */
} st_memory_steps;

/* From n tensors at t and the size of the packs (st_layers_measure). ST_EINVAL when the sum
 * overflows. */
ST_NODISCARD st_status st_model_memory_predict(const st_model_config *c, const st_tensor *t,
                                               size_t n, size_t packed, bool shared,
                                               const st_memory_steps *steps, st_memory_need *out,
                                               st_error *err);

/* What there is: each SIZE_MAX when unlimited or unknown. */
typedef struct st_memory_room {
    size_t limit;         /* the user's (memory_limit) */
    size_t available;     /* st_memory_available: the machine's and the cgroup's */
    size_t address_space; /* RLIMIT_AS less what is mapped already, weights included */
} st_memory_room;

/* ST_ENOMEM with both numbers and what can be done when need does not fit. Pure. */
ST_NODISCARD st_status st_memory_fits(const char *dir, const st_memory_need *need,
                                      const st_memory_room *room, st_error *err);
/* Reads what this process has; limit 0: none. */
void st_memory_read_room(size_t limit, st_memory_room *room);

/* All of it, for st_model_load: predicts, reads, decides. */
ST_NODISCARD st_status st_model_memory_check(const st_checkpoint *ckpt, size_t packed, bool shared,
                                             const st_memory_steps *steps, size_t memory_limit,
                                             st_error *err);

#endif
