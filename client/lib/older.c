/* older.c: the calls that write a struct which has grown, as programs know them that were linked
 * before it grew: they reserved no more room than the struct had then. The version of the symbol
 * says which form they know; today's form is the default (libinferclient.map).
 *
 * Owns nothing. Threads: as the calls of today. */
#include "conn.h"

#include <stddef.h>
#include <string.h>

/* What both structs took before there were several answers. */
#define REQUEST_BYTES offsetof(struct infer_request, n_answers)
#define EVENT_BYTES   offsetof(struct infer_event, answer)

INFER_ABI_ASSERT(older_request, REQUEST_BYTES % sizeof(uint64_t) == 0); /* no padding followed */
INFER_ABI_ASSERT(older_event, EVENT_BYTES % sizeof(uint64_t) == 0);

/* What a model took before models came and went: its last four bytes were reserved. */
#define MODEL_BYTES offsetof(struct infer_model, index)

/* And before they had a device. */
#define MODEL_3_BYTES offsetof(struct infer_model, device)

/* And before they could be on two. */
#define MODEL_4_BYTES offsetof(struct infer_model, rest_device)

/* And before they told how fast their weights are read. */
#define MODEL_5_BYTES offsetof(struct infer_model, file_bytes)

INFER_ABI_ASSERT(older_model, MODEL_BYTES % sizeof(uint64_t) == 0);
INFER_ABI_ASSERT(older_model_3, MODEL_3_BYTES % sizeof(uint64_t) == 0);
INFER_ABI_ASSERT(older_model_4, MODEL_4_BYTES % sizeof(uint64_t) == 0);
INFER_ABI_ASSERT(older_model_5, MODEL_5_BYTES % sizeof(uint64_t) == 0);

/* What to load, before it could name a device. */
INFER_ABI_ASSERT(older_load, LOAD_OLDER_BYTES % sizeof(uint64_t) == 0);

API void infer_request_default_0(struct infer_request *request);
API int infer_next_0(struct infer_conn *conn, uint32_t id, int timeout_ms,
                     struct infer_event *ret_event);

API int infer_models_0(struct infer_conn *conn, struct infer_model **ret_models, size_t *ret_n);
API int infer_models_3(struct infer_conn *conn, struct infer_model **ret_models, size_t *ret_n);
API int infer_models_4(struct infer_conn *conn, struct infer_model **ret_models, size_t *ret_n);
API int infer_models_5(struct infer_conn *conn, struct infer_model **ret_models, size_t *ret_n);

API void infer_load_default_3(struct infer_load *load);

__asm__(".symver infer_load_default_3, infer_load_default@INFERCLIENT_3");
__asm__(".symver infer_models_5, infer_models@INFERCLIENT_5");
__asm__(".symver infer_models_4, infer_models@INFERCLIENT_4");
__asm__(".symver infer_models_3, infer_models@INFERCLIENT_3");
__asm__(".symver infer_models_0, infer_models@INFERCLIENT_0");
__asm__(".symver infer_request_default_0, infer_request_default@INFERCLIENT_0");
__asm__(".symver infer_next_0, infer_next@INFERCLIENT_0");

void infer_request_default_0(struct infer_request *request)
{
    struct infer_request whole;
    infer_request_default(&whole);
    whole.bytes = REQUEST_BYTES;
    memcpy(request, &whole, REQUEST_BYTES);
}

/* Who asks by an older struct has one answer to a request: no event is of a kind that is new. */
int infer_next_0(struct infer_conn *conn, uint32_t id, int timeout_ms,
                 struct infer_event *ret_event)
{
    struct infer_event whole;
    if (ret_event == NULL)
        return -INFER_E_INVALID;
    int r = infer_next(conn, id, timeout_ms, &whole);
    if (r == 1)
        memcpy(ret_event, &whole, EVENT_BYTES);
    return r;
}

static int shorter_models(struct infer_conn *conn, size_t bytes, struct infer_model **ret_models,
                          size_t *ret_n)
{
    struct infer_model *models;
    size_t n;
    if (ret_models == NULL || ret_n == NULL)
        return -INFER_E_INVALID;
    int r = infer_models(conn, &models, &n);
    if (r < 0)
        return r;
    for (size_t i = 0; i < n; i++) {
        if (bytes == MODEL_BYTES)
            models[i].state = 0;
        memmove((char *)models + i * bytes, &models[i], bytes);
    }
    *ret_models = models;
    *ret_n = n;
    return r;
}

int infer_models_0(struct infer_conn *conn, struct infer_model **ret_models, size_t *ret_n)
{
    return shorter_models(conn, MODEL_BYTES, ret_models, ret_n);
}

int infer_models_3(struct infer_conn *conn, struct infer_model **ret_models, size_t *ret_n)
{
    return shorter_models(conn, MODEL_3_BYTES, ret_models, ret_n);
}

int infer_models_4(struct infer_conn *conn, struct infer_model **ret_models, size_t *ret_n)
{
    return shorter_models(conn, MODEL_4_BYTES, ret_models, ret_n);
}

int infer_models_5(struct infer_conn *conn, struct infer_model **ret_models, size_t *ret_n)
{
    return shorter_models(conn, MODEL_5_BYTES, ret_models, ret_n);
}

void infer_load_default_3(struct infer_load *load)
{
    struct infer_load whole;
    infer_load_default(&whole);
    whole.bytes = LOAD_OLDER_BYTES;
    memcpy(load, &whole, LOAD_OLDER_BYTES);
}
