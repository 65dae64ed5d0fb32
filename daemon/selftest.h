/* selftest.h: does a backend compute? A tiny model with made-up weights runs through the same table
 * of functions as every other model, and what comes out is compared with what is right.
 *
 * Threads: one at a time. */
#ifndef INFERD_SELFTEST_H
#define INFERD_SELFTEST_H

#include "base/report.h"
#include "inferd/backend.h"

/* 0, or -INFER_E_BACKEND_LOAD, or -INFER_E_BACKEND_LOST, with a sentence. Takes well under a
 * second, keeps nothing. */
int selftest_run(const struct infer_backend_api *api, struct infer_backend *backend,
                 struct report *report);

#endif
