/* split.h: a model on two backends, its first layers on one and the rest on the other, that looks
 * like a model on one.
 *
 * split_new() makes an instance of a backend, split_api, for one plan: what is asked of it goes to
 * both, each with its part of the plan (model/cut.h), and a step runs through the first and then
 * through the second, with x in the host's memory between them. So whoever holds a table of
 * functions, an instance and a model need not know. Pages have the same ids on both, and a page's
 * bytes are the first one's and then the second one's.
 *
 * Where one of the two fails its error is the whole's; what the other had taken is given back. */
#ifndef INFERD_ENGINE_SPLIT_H
#define INFERD_ENGINE_SPLIT_H

#include "inferd/backend.h"

struct split_side {
    const struct infer_backend_api *api;
    struct infer_backend *instance;
};

extern const struct infer_backend_api split_api;

/* The first n_first layers of the plan (at least one, and not all) on sides[0]. x, which a model
 * takes when it is opened, comes from the host. The plan, the sides and the host outlive it.
 * -ENOMEM. End it with split_api.close(). */
int split_new(const struct infer_plan *plan, uint32_t n_first, const struct split_side sides[2],
              const struct infer_host *host, struct infer_backend **ret);

/* What a model would take on each side, x with the second; split_api.estimate() has the sum. */
int split_estimate(struct infer_backend *split, const struct infer_state_config *state,
                   struct infer_estimate ret[2]);
/* Both sides of it together. */
struct infer_estimate split_sum(const struct infer_estimate sides[2]);

#endif
