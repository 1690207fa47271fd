/* The parts of config.json that are objects of their own, and how errors name a key. Internal to
 * the parser in model_config.c, config_rope.c and config_quant.c. */
#ifndef ST_MODEL_CONFIG_PARTS_H
#define ST_MODEL_CONFIG_PARTS_H

#include <jansson.h>

#include "starling/model.h"

/* rope_scaling, or the newer rope_parameters; needs rope_theta and max_positions set from their
 * own keys. Sets the rope_* and yarn_* fields, and may raise max_positions. */
ST_NODISCARD st_status st_config_rope(json_t *root, st_model_config *c, st_error *err);
/* DeepSeek's softmax correction for YaRN, and the factor of cosines and sines:
 * m(scale) = 0.1 * scale * ln(factor) + 1. */
double st_yarn_mscale(double factor, double scale);

/* quantization_config (or compression_config); sets quant and int8_activations. */
ST_NODISCARD st_status st_config_quant(json_t *root, st_model_config *c, st_error *err);

/* A short JSON text of value for error messages ("null" for NULL), in buf[0..cap). */
const char *st_config_text(json_t *value, char *buf, size_t cap);
/* The member called name, or NULL when it is absent or null. */
json_t *st_config_get(json_t *object, const char *name);

#endif
