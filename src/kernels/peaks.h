/* What this machine can do at most, measured: the denominators of `starling bench`. */
#ifndef ST_KERNELS_PEAKS_H
#define ST_KERNELS_PEAKS_H

#include "base/threads.h"
#include "kernels/kernels.h"

/* Each the best of several tries. 0: the table has no such instruction loop. */
typedef struct st_peaks {
    double float_one, float_all; /* float32 multiply-adds, GFLOP/s; one thread, whole pool */
    double i8_one, i8_all;       /* int8 multiply-adds, GOP/s */
    double read_one, read_all;   /* reading memory, GB/s */
} st_peaks;

/* Takes about half a second (quick: less, with a smaller buffer). */
ST_NODISCARD st_status st_peaks_measure(const st_kernels *k, st_pool *pool, bool quick,
                                        st_peaks *out, st_error *err);

#endif
