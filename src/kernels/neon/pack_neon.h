/* Layout of packed weights in both NEON tables: four inputs of a column side by side, as SDOT takes
 * them. */
#ifndef ST_KERNELS_PACK_NEON_H
#define ST_KERNELS_PACK_NEON_H

#define PK_ROWS       6
#define PK_QUAD       1
#define PK_INT_OFFSET 0
#define PK_I4_HIGH    0
#define PK_I4_ROWS    2

#endif
