/* A text into the JSON scanner and into jansson: both take it, as the same tree, or neither. */
#include <stddef.h>
#include <stdint.h>

#include "../unit/json_oracle.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (oracle_compare((const char *)data, size))
        abort();
    return 0;
}
