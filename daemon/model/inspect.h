/* inspect.h: what a model file holds, as text for a person (inferd --inspect FILE). */
#ifndef INFERD_MODEL_INSPECT_H
#define INFERD_MODEL_INSPECT_H

#include "inferd/backend.h"
#include "model/gguf.h"

#include <stdio.h>

/* A summary (also of files that cannot be served, with the reason), then the keys and the tensors
 * as tables. estimate and state: what a backend would take, or both NULL. Text of the file is made
 * printable. 0, or -EIO when out failed. */
int inspect_print(const struct gguf *g, FILE *out, const struct infer_estimate *estimate,
                  const struct infer_state_config *state);

#endif
