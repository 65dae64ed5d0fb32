/* ref.c: the reference backend's one export. Everything else of this folder is also linked into
 * the other backends, which share its decoders and its sampler; so nothing else may stand here. */
#include "ref/model.h"

static const struct infer_backend_api api = {
    .abi = INFER_BACKEND_ABI,
    .bytes = sizeof(struct infer_backend_api),
    .name = "ref",
    .version = INFERD_VERSION,
    .open = ref_open,
    .close = ref_close,
    .last_error = ref_last_error,
    .describe = ref_describe,
    .estimate = ref_estimate,
    .model_open = ref_model_open,
    .tensor_write = ref_tensor_write,
    .model_ready = ref_model_ready,
    .model_close = ref_model_close,
    .run = ref_run,
    .page_copy = ref_page_copy,
    .page_zero = ref_page_zero,
    .page_read = ref_page_read,
    .page_write = ref_page_write,
    .page_shift = ref_page_shift,
};

const struct infer_backend_api *infer_backend_v1(void)
{
    return &api;
}
