/* gguf_head.c: reads and checks the head of one GGUF file.
 *
 * Layout of a file (version 2 and 3; all integers little-endian):
 *
 *   "GGUF"  u32 version  u64 n_tensors  u64 n_keys
 *   n_keys times:     string name, u32 type, value
 *   n_tensors times:  string name, u32 n_dims, u64 ne[n_dims], u32 type, u64 offset
 *   padding to general.alignment (32 when absent), then the tensors' bytes at start + offset
 *
 *   string: u64 bytes, then the bytes.   array: u32 element type, u64 n, then n values.
 *
 * Owns: the copy of the head. Invariants: every byte looked at lies below `loaded`, and `loaded`
 * never exceeds the file's size as it was when opened; nothing is read twice from the file, so a
 * file that changes under us cannot change what was checked. Every loop runs over items that take
 * at least eight bytes of the file each. Threads: one. Limits: below. */
#include "model/gguf_head.h"

#include "base/checked.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GGUF_HEAD_FIRST       (1u << 20)   /* first read: holds the head of a small vocabulary */
#define GGUF_HEAD_MAX         (256u << 20) /* 15 times the largest head in use; offsets fit 32 bits */
#define GGUF_KEYS_MAX         (1u << 16)
#define GGUF_TENSORS_MAX      (1u << 17)
#define GGUF_KEY_BYTES_MAX    65535u     /* the format's own bound */
#define GGUF_TENSOR_NAME_MAX  63u        /* ggml's own bound */
#define GGUF_ARRAY_MAX        (1u << 26) /* elements of one array */
#define GGUF_ALIGNMENT        32u
#define GGUF_ALIGNMENT_MAX    (1u << 20)
#define GGUF_TENSOR_BYTES_MAX (UINT64_C(1) << 50)

uint32_t gguf_value_bytes(uint32_t type)
{
    static const uint8_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < sizeof bytes ? bytes[type] : 0;
}

uint32_t gguf_hash(const void *bytes, size_t n)
{
    const uint8_t *b = bytes;
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ b[i]) * 16777619u;
    return h ^ (h >> 15);
}

const char *gguf_file_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL && slash[1] != '\0' ? slash + 1 : path;
}

/* "FILE SENTENCE" or "FILE: key 'x' SENTENCE". */
static int head_fail(struct gguf_head *h, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static int head_fail(struct gguf_head *h, int code, const char *format, ...)
{
    char sentence[INFER_DETAIL_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    const char *name = gguf_file_name(h->path);
    if (h->item_name_bytes == 0)
        return report_fail(h->report, code, "%.128s %s", name, sentence);
    int shown = h->item_name_bytes < 100 ? (int)h->item_name_bytes : 100;
    return report_fail(h->report, code, "%.128s: %s '%.*s' %s", name, h->item, shown,
                       (const char *)h->data + h->item_name, sentence);
}

static int head_truncated(struct gguf_head *h, uint64_t needs)
{
    return head_fail(h, INFER_E_MODEL_FORMAT,
                     "needs %" PRIu64 " bytes at byte %" PRIu64
                     ", but the file ends at byte %" PRIu64
                     "; it is damaged or was cut short: download it again",
                     needs, h->at, h->file_bytes);
}

static ssize_t head_read(const struct gguf_head *h)
{
    void *to = h->data + h->loaded;
    size_t bytes = h->capacity - h->loaded;
    ssize_t n;
    if (h->reader != NULL)
        return h->reader->read(h->reader->ctx, h->fd, to, bytes, h->loaded);
    do
        n = pread(h->fd, to, bytes, (off_t)h->loaded);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

/* Grows the copy until it holds `end` bytes of the file. */
static int head_load(struct gguf_head *h, uint64_t end)
{
    uint64_t capacity = h->capacity > 0 ? h->capacity : GGUF_HEAD_FIRST;
    while (capacity < end)
        capacity *= 2;
    if (capacity > h->file_bytes)
        capacity = h->file_bytes;
    if (capacity > h->capacity) {
        uint8_t *data = realloc(h->data, capacity);
        if (data == NULL)
            return head_fail(h, INFER_E_OUT_OF_MEMORY,
                             "needs %" PRIu64 " bytes of memory for its head, which are not there",
                             capacity);
        h->data = data;
        h->capacity = capacity;
    }
    while (h->loaded < h->capacity) {
        ssize_t n = head_read(h);
        if (n < 0)
            return head_fail(h, INFER_E_MODEL_UNREADABLE, "cannot be read: %s", strerror((int)-n));
        if (n == 0)
            return head_fail(h, INFER_E_MODEL_UNREADABLE, "became shorter while it was read");
        h->loaded += (uint64_t)n;
    }
    return 0;
}

/* Makes sure that n bytes from `at` on are in memory. */
static int head_want(struct gguf_head *h, uint64_t n)
{
    if (n <= h->loaded - h->at)
        return 0;
    if (n > h->file_bytes - h->at)
        return head_truncated(h, n);
    if (h->at + n > GGUF_HEAD_MAX)
        return head_fail(h, INFER_E_MODEL_FORMAT, "reaches beyond the first %u MiB of the file",
                         GGUF_HEAD_MAX >> 20);
    return head_load(h, h->at + n);
}

static int head_u32(struct gguf_head *h, uint32_t *ret)
{
    int r = head_want(h, sizeof *ret);
    if (r < 0)
        return r;
    memcpy(ret, h->data + h->at, sizeof *ret);
    h->at += sizeof *ret;
    return 0;
}

static int head_u64(struct gguf_head *h, uint64_t *ret)
{
    int r = head_want(h, sizeof *ret);
    if (r < 0)
        return r;
    memcpy(ret, h->data + h->at, sizeof *ret);
    h->at += sizeof *ret;
    return 0;
}

/* A string's extent; `at` moves behind it. */
static int head_string(struct gguf_head *h, uint32_t *ret_offset, uint64_t *ret_bytes)
{
    uint64_t bytes = 0;
    int r = head_u64(h, &bytes);
    if (r < 0)
        return r;
    r = head_want(h, bytes);
    if (r < 0)
        return r;
    *ret_offset = (uint32_t)h->at;
    *ret_bytes = bytes;
    h->at += bytes;
    return 0;
}

/* A name of 1 .. max bytes without NUL; becomes the item that failures are about. */
static int head_name(struct gguf_head *h, const char *item, uint32_t max)
{
    uint64_t bytes = 0;
    uint32_t offset = 0;
    h->item_name_bytes = 0;
    uint64_t start = h->at;
    int r = head_string(h, &offset, &bytes);
    if (r < 0)
        return r;
    if (bytes == 0 || bytes > max)
        return head_fail(h, INFER_E_MODEL_FORMAT,
                         "has a %s name of %" PRIu64 " bytes at byte %" PRIu64
                         "; 1 to %u are possible",
                         item, bytes, start, max);
    if (memchr(h->data + offset, '\0', bytes) != NULL)
        return head_fail(h, INFER_E_MODEL_FORMAT, "has a %s name with a zero byte at byte %" PRIu64,
                         item, start);
    h->item = item;
    h->item_name = offset;
    h->item_name_bytes = (uint32_t)bytes;
    return 0;
}

/* ---- what else it may be --------------------------------------------------------------------- */

struct foreign {
    const char *magic;
    uint32_t bytes;
    const char *what;
};

static const struct foreign foreign_files[] = {
    {"version https://git-lfs", 23,
     "a Git LFS pointer, not the model itself; fetch it with 'git lfs pull'"},
    {"# xet version", 13, "a Xet pointer, not the model itself; download the file it stands for"},
    {"tjgg", 4, "a ggjt file, llama.cpp's format before GGUF; convert the model again"},
    {"lmgg", 4, "a ggml file, a format before GGUF; convert the model again"},
    {"fmgg", 4, "a ggmf file, a format before GGUF; convert the model again"},
    {"algg", 4, "a ggla adapter, not a model"},
    {"PK\x03\x04", 4, "a zip archive (PyTorch checkpoints are); convert it to GGUF"},
    {"\x80\x02", 2, "a Python pickle (an old PyTorch checkpoint); convert it to GGUF"},
    {"\x89HDF", 4, "an HDF5 file (Keras); convert it to GGUF"},
    {"\x1f\x8b", 2, "gzip-compressed; unpack it first"},
    {"\x28\xb5\x2f\xfd", 4, "zstd-compressed; unpack it first"},
    {"\xfd"
     "7zXZ",
     5, "xz-compressed; unpack it first"},
    {"\x7f"
     "ELF",
     4, "a program"},
    {"<!", 2, "an HTML page, perhaps the answer to a failed download"},
    {"<html", 5, "an HTML page, perhaps the answer to a failed download"},
    {"<?xml", 5, "an XML text, perhaps the answer to a failed download"},
    {"{", 1, "a JSON text, perhaps the answer to a failed download"},
};

static int head_foreign(struct gguf_head *h)
{
    for (size_t i = 0; i < sizeof foreign_files / sizeof foreign_files[0]; i++) {
        const struct foreign *f = &foreign_files[i];
        if (h->loaded >= f->bytes && memcmp(h->data, f->magic, f->bytes) == 0)
            return head_fail(h, INFER_E_MODEL_FORMAT, "is not a GGUF file but %s", f->what);
    }
    uint64_t header = 0;
    if (h->loaded >= 9) {
        memcpy(&header, h->data, sizeof header);
        if (h->data[8] == '{' && header < h->file_bytes)
            return head_fail(h, INFER_E_MODEL_FORMAT,
                             "is not a GGUF file but a safetensors file; convert it to GGUF");
    }
    if (h->loaded < 4)
        return head_fail(h, INFER_E_MODEL_FORMAT,
                         "is not a GGUF file: it holds only %" PRIu64 " bytes", h->file_bytes);
    return head_fail(h, INFER_E_MODEL_FORMAT,
                     "is not a GGUF file: it begins with the bytes %02x %02x %02x %02x", h->data[0],
                     h->data[1], h->data[2], h->data[3]);
}

static int head_version(struct gguf_head *h)
{
    uint32_t version = 0;
    h->at = 4;
    int r = head_u32(h, &version);
    if (r < 0)
        return r;
    if (version != 0 && (version & 0xffff) == 0)
        return head_fail(h, INFER_E_MODEL_UNSUPPORTED,
                         "is a big-endian GGUF file; convert it to little-endian first");
    if (version == 1)
        return head_fail(h, INFER_E_MODEL_UNSUPPORTED,
                         "is GGUF version 1, which is not read any more; convert the model again");
    if (version != 2 && version != 3)
        return head_fail(h, INFER_E_MODEL_UNSUPPORTED,
                         "is GGUF version %" PRIu32 "; versions 2 and 3 are read", version);
    h->version = version;
    return 0;
}

static int head_begin(struct gguf_head *h)
{
    if (h->file_bytes == 0)
        return head_fail(h, INFER_E_MODEL_FORMAT, "is empty");
    int r = head_load(h, 1);
    if (r < 0)
        return r;
    if (h->loaded < 4 || memcmp(h->data, "GGUF", 4) != 0)
        return head_foreign(h);
    r = head_version(h);
    if (r < 0)
        return r;
    uint64_t n_tensors = 0, n_keys = 0;
    r = head_u64(h, &n_tensors);
    if (r < 0)
        return r;
    r = head_u64(h, &n_keys);
    if (r < 0)
        return r;
    if (n_tensors > GGUF_TENSORS_MAX)
        return head_fail(h, INFER_E_MODEL_FORMAT, "claims %" PRIu64 " tensors; at most %u are read",
                         n_tensors, GGUF_TENSORS_MAX);
    if (n_keys > GGUF_KEYS_MAX)
        return head_fail(h, INFER_E_MODEL_FORMAT, "claims %" PRIu64 " keys; at most %u are read",
                         n_keys, GGUF_KEYS_MAX);
    h->n_tensors = n_tensors;
    h->n_keys = n_keys;
    h->first_key = h->at;
    return 0;
}

int gguf_head_init(struct gguf_head *h, int fd, const char *path, uint64_t file_bytes,
                   const struct gguf_reader *reader, struct report *report)
{
    memset(h, 0, sizeof *h);
    h->fd = fd;
    h->reader = reader;
    h->path = path;
    h->file_bytes = file_bytes;
    h->report = report;
    h->alignment = GGUF_ALIGNMENT;
    int r = head_begin(h);
    if (r < 0)
        gguf_head_done(h);
    return r;
}

void gguf_head_done(struct gguf_head *h)
{
    free(h->data);
    h->data = NULL;
    h->loaded = h->capacity = h->at = 0;
}

void gguf_head_rewind(struct gguf_head *h)
{
    h->at = h->first_key;
    h->item_name_bytes = 0;
}

/* ---- keys ------------------------------------------------------------------------------------ */

/* 1 when n bytes are all 0 or 1. */
static int are_bools(const uint8_t *bytes, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if (bytes[i] > 1)
            return 0;
    return 1;
}

static int head_strings(struct gguf_head *h, uint64_t n, uint32_t *offsets)
{
    for (uint64_t i = 0; i < n; i++) {
        uint32_t offset = 0;
        uint64_t bytes = 0;
        int r = head_string(h, &offset, &bytes);
        if (r < 0)
            return r;
        if (offsets != NULL)
            offsets[i] = offset;
    }
    return 0;
}

static int head_array(struct gguf_head *h, struct gguf_head_key *key, uint32_t *offsets)
{
    uint32_t element = 0;
    uint64_t n = 0, bytes = 0;
    int r = head_u32(h, &element);
    if (r < 0)
        return r;
    r = head_u64(h, &n);
    if (r < 0)
        return r;
    if (element == GGUF_ARRAY)
        return head_fail(h, INFER_E_MODEL_UNSUPPORTED, "is an array of arrays, which is not read");
    if (element > GGUF_FLOAT64)
        return head_fail(h, INFER_E_MODEL_FORMAT, "is an array of the unknown value type %" PRIu32,
                         element);
    if (n > GGUF_ARRAY_MAX)
        return head_fail(h, INFER_E_MODEL_FORMAT,
                         "is an array of %" PRIu64 " elements; at most %u are read", n,
                         GGUF_ARRAY_MAX);
    key->element = (uint8_t)element;
    key->n = n;
    key->value = (uint32_t)h->at;
    if (element == GGUF_STRING)
        return head_strings(h, n, offsets);
    if (checked_mul(n, gguf_value_bytes(element), &bytes))
        return head_truncated(h, UINT64_MAX);
    r = head_want(h, bytes);
    if (r < 0)
        return r;
    if (element == GGUF_BOOL && !are_bools(h->data + h->at, bytes))
        return head_fail(h, INFER_E_MODEL_FORMAT, "holds a truth value that is neither 0 nor 1");
    h->at += bytes;
    return 0;
}

static int head_value(struct gguf_head *h, struct gguf_head_key *key, uint32_t *offsets)
{
    if (key->type == GGUF_ARRAY)
        return head_array(h, key, offsets);
    if (key->type == GGUF_STRING)
        return head_string(h, &key->value, &key->n);
    uint32_t bytes = gguf_value_bytes(key->type);
    int r = head_want(h, bytes);
    if (r < 0)
        return r;
    if (key->type == GGUF_BOOL && !are_bools(h->data + h->at, 1))
        return head_fail(h, INFER_E_MODEL_FORMAT, "holds a truth value that is neither 0 nor 1");
    key->value = (uint32_t)h->at;
    h->at += bytes;
    return 0;
}

int gguf_head_key(struct gguf_head *h, struct gguf_head_key *ret, uint32_t *offsets)
{
    struct gguf_head_key key = {.n = 1};
    int r = head_name(h, "key", GGUF_KEY_BYTES_MAX);
    if (r < 0)
        return r;
    key.name = h->item_name;
    key.name_bytes = h->item_name_bytes;
    key.hash = gguf_hash(h->data + key.name, key.name_bytes);
    uint32_t type = 0;
    r = head_u32(h, &type);
    if (r < 0)
        return r;
    if (type > GGUF_FLOAT64)
        return head_fail(h, INFER_E_MODEL_FORMAT, "has the unknown value type %" PRIu32, type);
    key.type = (uint8_t)type;
    r = head_value(h, &key, offsets);
    if (r < 0)
        return r;
    *ret = key;
    return 0;
}

/* ---- tensors --------------------------------------------------------------------------------- */

static int head_dims(struct gguf_head *h, struct infer_tensor *t)
{
    uint32_t n_dims = 0;
    int r = head_u32(h, &n_dims);
    if (r < 0)
        return r;
    if (n_dims < 1 || n_dims > 4)
        return head_fail(h, INFER_E_MODEL_FORMAT, "has %" PRIu32 " dimensions; 1 to 4 are possible",
                         n_dims);
    t->n_dims = n_dims;
    for (uint32_t d = 0; d < 4; d++) {
        t->ne[d] = 1;
        if (d >= n_dims)
            continue;
        r = head_u64(h, &t->ne[d]);
        if (r < 0)
            return r;
        if (t->ne[d] == 0)
            return head_fail(h, INFER_E_MODEL_FORMAT, "has a dimension of zero");
    }
    return 0;
}

/* row_bytes, n_rows and bytes from type and dimensions. */
static int head_size(struct gguf_head *h, struct gguf_tensor *t)
{
    struct infer_tensor *x = &t->tensor;
    const struct type_info *type = type_info(x->type);
    if (type == NULL)
        return head_fail(h, INFER_E_MODEL_UNSUPPORTED,
                         "has the type id %" PRIu32 ", which this version does not know", x->type);
    if (type->block == 0)
        return head_fail(
            h, INFER_E_MODEL_UNSUPPORTED,
            "has the type %s, which was removed from the format; convert the model again",
            type->name);
    if (x->ne[0] % type->block != 0)
        return head_fail(h, INFER_E_MODEL_FORMAT,
                         "has rows of %" PRIu64 " values, not a multiple of %s's %" PRIu32,
                         x->ne[0], type->name, type->block);
    if (checked_mul(x->ne[0] / type->block, type->block_bytes, &x->row_bytes) ||
        checked_mul(x->ne[1], x->ne[2], &x->n_rows) ||
        checked_mul(x->n_rows, x->ne[3], &x->n_rows) ||
        checked_mul(x->n_rows, x->row_bytes, &t->bytes) || t->bytes > GGUF_TENSOR_BYTES_MAX)
        return head_fail(h, INFER_E_MODEL_FORMAT, "has dimensions whose product is out of range");
    return 0;
}

int gguf_head_tensor(struct gguf_head *h, struct gguf_tensor *ret)
{
    struct gguf_tensor t;
    memset(&t, 0, sizeof t);
    int r = head_name(h, "tensor", GGUF_TENSOR_NAME_MAX);
    if (r < 0)
        return r;
    memcpy(t.tensor.name, h->data + h->item_name, h->item_name_bytes);
    r = head_dims(h, &t.tensor);
    if (r < 0)
        return r;
    r = head_u32(h, &t.tensor.type);
    if (r < 0)
        return r;
    r = head_size(h, &t);
    if (r < 0)
        return r;
    uint64_t offset = 0;
    r = head_u64(h, &offset);
    if (r < 0)
        return r;
    if (offset % h->alignment != 0)
        return head_fail(h, INFER_E_MODEL_FORMAT,
                         "begins at offset %" PRIu64 ", not a multiple of the alignment %" PRIu32,
                         offset, h->alignment);
    /* data_start is 0 as long as the first walk over the infos has not ended. */
    if (checked_add(h->data_start, offset, &t.offset) ||
        (h->data_start > 0 && !checked_within(t.offset, t.bytes, h->file_bytes)))
        return head_fail(h, INFER_E_MODEL_FORMAT,
                         "has %" PRIu64 " bytes at offset %" PRIu64
                         " of the data, which begins at byte %" PRIu64
                         ", but the file ends at byte %" PRIu64
                         "; it is damaged or was cut short: download it again",
                         t.bytes, offset, h->data_start, h->file_bytes);
    *ret = t;
    return 0;
}

/* ---- the first pass -------------------------------------------------------------------------- */

static bool key_is(const struct gguf_head *h, const struct gguf_head_key *key, const char *name)
{
    return key->name_bytes == strlen(name) &&
           memcmp(h->data + key->name, name, key->name_bytes) == 0;
}

/* An integer of any type that is not negative. */
static int key_unsigned(struct gguf_head *h, const struct gguf_head_key *key, uint64_t *ret)
{
    uint32_t bytes = gguf_value_bytes(key->type);
    uint64_t v = 0;
    if (bytes == 0 || key->type == GGUF_FLOAT32 || key->type == GGUF_FLOAT64 ||
        key->type == GGUF_BOOL)
        return head_fail(h, INFER_E_MODEL_FORMAT, "is not an integer");
    memcpy(&v, h->data + key->value, bytes);
    bool is_signed = key->type == GGUF_INT8 || key->type == GGUF_INT16 || key->type == GGUF_INT32 ||
                     key->type == GGUF_INT64;
    if (is_signed && (v >> (bytes * 8 - 1)) != 0)
        return head_fail(h, INFER_E_MODEL_FORMAT, "is negative");
    *ret = v;
    return 0;
}

/* The few keys that say how the file itself is to be read. */
static int head_note_key(struct gguf_head *h, const struct gguf_head_key *key)
{
    if (key->type == GGUF_ARRAY && key->element == GGUF_STRING)
        h->n_strings += key->n;
    if (key_is(h, key, "general.alignment")) {
        uint64_t alignment = 0;
        int r = key_unsigned(h, key, &alignment);
        if (r < 0)
            return r;
        if (alignment == 0 || alignment > GGUF_ALIGNMENT_MAX || (alignment & (alignment - 1)) != 0)
            return head_fail(h, INFER_E_MODEL_FORMAT, "is %" PRIu64 ", not a power of two up to %u",
                             alignment, GGUF_ALIGNMENT_MAX);
        h->alignment = (uint32_t)alignment;
    } else if (key_is(h, key, "split.no")) {
        return key_unsigned(h, key, &h->split_no);
    } else if (key_is(h, key, "split.count")) {
        h->is_split = true;
        return key_unsigned(h, key, &h->split_count);
    } else if (key_is(h, key, "split.tensors.count")) {
        return key_unsigned(h, key, &h->split_tensors);
    }
    return 0;
}

int gguf_head_measure(struct gguf_head *h)
{
    int r = 0;
    gguf_head_rewind(h);
    for (uint64_t i = 0; i < h->n_keys; i++) {
        struct gguf_head_key key;
        r = gguf_head_key(h, &key, NULL);
        if (r < 0)
            return r;
        r = head_note_key(h, &key);
        if (r < 0)
            return r;
    }
    h->first_tensor = h->at;
    struct gguf_tensor tensor;
    for (uint64_t i = 0; i < h->n_tensors; i++) {
        r = gguf_head_tensor(h, &tensor);
        if (r < 0)
            return r;
    }
    /* A head of at most GGUF_HEAD_MAX bytes: cannot overflow. */
    h->data_start = (h->at + h->alignment - 1) & ~(uint64_t)(h->alignment - 1);
    h->at = h->first_tensor;
    for (uint64_t i = 0; i < h->n_tensors; i++) {
        r = gguf_head_tensor(h, &tensor);
        if (r < 0)
            return r;
    }
    h->item_name_bytes = 0;
    return 0;
}
