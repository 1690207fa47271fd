/* Makes a tile function for each number of rows, and the set of them. Each is a function of its
 * own so that the compiler sees constant sizes. What follows the type are further fields. */
#ifndef ST_KERNELS_SIMD_PACKED_ROWS_H
#define ST_KERNELS_SIMD_PACKED_ROWS_H

#define PK_TILE(name, body, type, mr)                                                              \
    static void name##_##mr(const st_tile *t)                                                      \
    {                                                                                              \
        body(type, mr, t);                                                                         \
    }

#define PK_TILE_SET_6(name, body, type, ...)                                                       \
    PK_TILE(name, body, type, 1)                                                                   \
    PK_TILE(name, body, type, 2)                                                                   \
    PK_TILE(name, body, type, 3)                                                                   \
    PK_TILE(name, body, type, 4)                                                                   \
    PK_TILE(name, body, type, 5)                                                                   \
    PK_TILE(name, body, type, 6)                                                                   \
    static const st_tile_set name = {                                                              \
        .tile = {NULL, name##_1, name##_2, name##_3, name##_4, name##_5, name##_6},                \
        .rows = 6,                                                                                 \
        .cols = PK_COLS,                                                                           \
        __VA_ARGS__};

#define PK_TILE_SET_12(name, body, type, ...)                                                      \
    PK_TILE(name, body, type, 1)                                                                   \
    PK_TILE(name, body, type, 2)                                                                   \
    PK_TILE(name, body, type, 3)                                                                   \
    PK_TILE(name, body, type, 4)                                                                   \
    PK_TILE(name, body, type, 5)                                                                   \
    PK_TILE(name, body, type, 6)                                                                   \
    PK_TILE(name, body, type, 7)                                                                   \
    PK_TILE(name, body, type, 8)                                                                   \
    PK_TILE(name, body, type, 9)                                                                   \
    PK_TILE(name, body, type, 10)                                                                  \
    PK_TILE(name, body, type, 11)                                                                  \
    PK_TILE(name, body, type, 12)                                                                  \
    static const st_tile_set name = {.tile = {NULL, name##_1, name##_2, name##_3, name##_4,        \
                                              name##_5, name##_6, name##_7, name##_8, name##_9,    \
                                              name##_10, name##_11, name##_12},                    \
                                     .rows = 12,                                                   \
                                     .cols = PK_COLS,                                              \
                                     __VA_ARGS__};

#endif
