/* gguf.c: GGUF files: opening, split models, lookups. See gguf.h for what is promised.
 *
 * How a file becomes a struct gguf:
 *
 *   part_open       open without blocking, regular files only; gguf_head_measure() walks the head
 *                   with checked arithmetic and refuses what is wrong with an item by itself
 *   parts_open      part 1 names how many parts there are; the others are opened the same way
 *   block_build     one zeroed block, sized from what was measured: keys, their hash table, the
 *                   offsets of every string of every array, tensors, their hash table
 *   *_fill, check   the second walk fills it and refuses what takes two items to see: a key or
 *                   tensor that appears twice, tensors that overlap
 *
 * Owns: the parts' descriptors and paths, the copy of part 1's head (keys and strings point into
 * it) and the block. Invariants after opening: every offset kept lies within the copy of the head,
 * every tensor's extent within its part. Threads: immutable after opening. Limits: gguf_head.c, and
 * below. A hash table is at most half full and no chain in it is longer than PROBES_MAX: names that
 * are made to collide are refused instead of searched for minutes. */
#include "model/gguf.h"

#include "base/checked.h"
#include "model/gguf_head.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PARTS_MAX  512u /* a descriptor each */
#define PROBES_MAX 256u

struct part {
    int fd; /* -1: not open */
    char *path;
    uint64_t bytes;
    struct gguf_head head; /* data is kept for part 0 only */
};

struct gguf {
    struct part *parts;
    uint32_t n_parts;
    uint32_t n_keys, n_tensors;
    const uint8_t *data; /* part 0's head */

    void *block; /* what follows points into it */
    struct gguf_head_key *keys;
    struct gguf_tensor *tensors;
    uint32_t *key_slots, *tensor_slots; /* index + 1, 0: free */
    uint32_t key_mask, tensor_mask;
    uint32_t *string_index; /* offsets of array strings' bytes; their length stands before them */
};

/* ---- opening one part ------------------------------------------------------------------------ */

static const char *kind_of_file(mode_t mode)
{
    if (S_ISDIR(mode))
        return "a directory";
    if (S_ISFIFO(mode))
        return "a pipe";
    if (S_ISCHR(mode))
        return "a character device";
    if (S_ISBLK(mode))
        return "a block device";
    if (S_ISSOCK(mode))
        return "a socket";
    return "not a file";
}

/* Opens without ever waiting (a FIFO without a writer) and without side effects of devices. */
static int part_path(struct part *p, int missing_code, struct report *report)
{
    p->fd = open(p->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (p->fd < 0)
        return report_fail(report, errno == ENOENT ? missing_code : INFER_E_MODEL_UNREADABLE,
                           "%.300s cannot be opened: %s", p->path, strerror(errno));
    return 0;
}

static int part_copy(struct part *p, int fd, struct report *report)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0)
        return report_fail(report, INFER_E_MODEL_UNREADABLE, "%.300s cannot be examined: %s",
                           p->path, strerror(errno));
    int mode = flags & O_ACCMODE;
    if ((flags & O_PATH) != 0 || (mode != O_RDONLY && mode != O_RDWR))
        return report_fail(report, INFER_E_MODEL_UNREADABLE,
                           "%.300s is not open for reading; open it with O_RDONLY", p->path);
    p->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (p->fd < 0)
        return report_fail(report, INFER_E_MODEL_UNREADABLE, "%.300s cannot be kept open: %s",
                           p->path, strerror(errno));
    return 0;
}

static int part_check_descriptor(struct part *p, struct report *report)
{
    struct stat st;
    if (fstat(p->fd, &st) < 0)
        return report_fail(report, INFER_E_MODEL_UNREADABLE, "%.300s cannot be examined: %s",
                           p->path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return report_fail(report, INFER_E_MODEL_UNREADABLE,
                           "%.300s is %s, not a regular file; give the path of a GGUF file",
                           p->path, kind_of_file(st.st_mode));
    /* Reads through io_uring would answer EAGAIN on a descriptor that must not block. */
    int flags = fcntl(p->fd, F_GETFL);
    if (flags < 0 || fcntl(p->fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
        return report_fail(report, INFER_E_MODEL_UNREADABLE, "%.300s cannot be used: %s", p->path,
                           strerror(errno));
    p->bytes = (uint64_t)st.st_size;
    return 0;
}

/* Descriptors instead of paths; n 0: none, the parts are found by their names. */
struct given {
    const int *fds;
    uint32_t n;
    const struct gguf_reader *reader;
};

/* Takes path, which is opened unless descriptors are given, and else names part i. */
static int part_open(struct part *p, char *path, const struct given *given, uint32_t i,
                     int missing_code, struct report *report)
{
    p->fd = -1;
    p->path = path;
    if (path == NULL)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for a path");
    int r =
        given->n == 0 ? part_path(p, missing_code, report) : part_copy(p, given->fds[i], report);
    if (r == 0)
        r = part_check_descriptor(p, report);
    if (r < 0)
        return r;
    r = gguf_head_init(&p->head, p->fd, p->path, p->bytes, given->reader, report);
    if (r < 0)
        return r;
    return gguf_head_measure(&p->head);
}

static void part_close(struct part *p)
{
    gguf_head_done(&p->head);
    if (p->fd >= 0)
        close(p->fd);
    free(p->path);
}

/* ---- split models ---------------------------------------------------------------------------- */

/* "-00001-of-00003.gguf" */
static void part_suffix(char *text, size_t size, uint64_t no, uint64_t count)
{
    snprintf(text, size, "-%05" PRIu64 "-of-%05" PRIu64 ".gguf", no + 1, count);
}

static int parts_check_first(const struct part *p, bool by_name, struct report *report)
{
    const struct gguf_head *h = &p->head;
    const char *name = gguf_file_name(p->path);
    char suffix[80];
    if (h->split_count > PARTS_MAX)
        return report_fail(report, INFER_E_MODEL_FORMAT,
                           "%.128s: key 'split.count' is %" PRIu64 "; at most %u parts are read",
                           name, h->split_count, PARTS_MAX);
    part_suffix(suffix, sizeof suffix, 0, h->split_count);
    if (h->split_no != 0)
        return report_fail(report, INFER_E_MODEL_PARTS,
                           "%.128s is part %" PRIu64 " of %" PRIu64
                           "; give the first part, whose name ends in %s",
                           name, h->split_no + 1, h->split_count, suffix);
    size_t bytes = strlen(p->path), tail = strlen(suffix);
    if (by_name && (bytes <= tail || strcmp(p->path + bytes - tail, suffix) != 0))
        return report_fail(report, INFER_E_MODEL_PARTS,
                           "%.128s is the first of %" PRIu64
                           " parts, but its name does not end in %s, so the others cannot be found",
                           name, h->split_count, suffix);
    return 0;
}

static int part_check(const struct gguf *g, uint32_t i, struct report *report)
{
    const struct gguf_head *first = &g->parts[0].head, *h = &g->parts[i].head;
    const char *name = gguf_file_name(g->parts[i].path);
    if (!h->is_split || h->split_count != first->split_count || h->split_no != i)
        return report_fail(report, INFER_E_MODEL_PARTS,
                           "%.128s says that it is part %" PRIu64 " of %" PRIu64
                           ", not part %" PRIu32 " of %" PRIu32,
                           name, h->split_no + 1, h->split_count, i + 1, g->n_parts);
    if (h->split_tensors != first->split_tensors)
        return report_fail(report, INFER_E_MODEL_PARTS,
                           "%.128s belongs to a model of %" PRIu64
                           " tensors, but part 1 to one of %" PRIu64,
                           name, h->split_tensors, first->split_tensors);
    return 0;
}

static int parts_open_rest(struct gguf *g, const struct given *given, struct report *report)
{
    const char *path = g->parts[0].path;
    uint64_t count = g->parts[0].head.split_count;
    char suffix[80];
    int r = parts_check_first(&g->parts[0], given->n == 0, report);
    if (r == 0 && given->n != 0 && given->n != count)
        r = report_fail(report, INFER_E_MODEL_PARTS,
                        "%.128s has %" PRIu64 " parts, but %u files were given",
                        gguf_file_name(path), count, given->n);
    if (r < 0)
        return r;
    part_suffix(suffix, sizeof suffix, 0, count);
    bool suffixed =
        strlen(path) > strlen(suffix) && strcmp(path + strlen(path) - strlen(suffix), suffix) == 0;
    int stem = (int)(strlen(path) - (suffixed ? strlen(suffix) : 0));
    struct part *parts = realloc(g->parts, count * sizeof *parts);
    if (parts == NULL)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for %" PRIu64 " parts", count);
    memset(parts + 1, 0, (count - 1) * sizeof *parts);
    g->parts = parts;
    for (uint32_t i = 1; i < count; i++)
        parts[i].fd = -1;
    g->n_parts = (uint32_t)count;
    for (uint32_t i = 1; i < count; i++) {
        char *name = NULL;
        part_suffix(suffix, sizeof suffix, i, count);
        if (asprintf(&name, "%.*s%s", stem, path, suffix) < 0)
            name = NULL;
        r = part_open(&parts[i], name, given, i, INFER_E_MODEL_PARTS, report);
        if (r < 0)
            return r;
        r = part_check(g, i, report);
        if (r < 0)
            return r;
    }
    return 0;
}

static int parts_open(struct gguf *g, const char *path, const struct given *given,
                      struct report *report)
{
    g->parts = calloc(1, sizeof *g->parts);
    if (g->parts == NULL)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for a model file");
    g->n_parts = 1;
    int r = part_open(&g->parts[0], strdup(path), given, 0, INFER_E_MODEL_UNREADABLE, report);
    if (r < 0)
        return r;
    if (given->n > 1 && g->parts[0].head.split_count <= 1)
        return report_fail(report, INFER_E_MODEL_PARTS,
                           "%.128s is a whole model, but %u files were given", gguf_file_name(path),
                           given->n);
    if (g->parts[0].head.split_count > 1) {
        r = parts_open_rest(g, given, report);
        if (r < 0)
            return r;
    }
    uint64_t n_tensors = 0, expected = g->parts[0].head.split_tensors;
    for (uint32_t i = 0; i < g->n_parts; i++)
        n_tensors += g->parts[i].head.n_tensors; /* PARTS_MAX times a bounded count */
    if (g->n_parts > 1 && expected > 0 && n_tensors != expected)
        return report_fail(report, INFER_E_MODEL_PARTS,
                           "%.128s and its other parts hold %" PRIu64
                           " tensors, but key 'split.tensors.count' is %" PRIu64,
                           gguf_file_name(path), n_tensors, expected);
    g->n_keys = (uint32_t)g->parts[0].head.n_keys;
    g->n_tensors = (uint32_t)n_tensors;
    return 0;
}

/* ---- the block ------------------------------------------------------------------------------- */

/* Slots of a hash table for n entries: a power of two, at least twice n. */
static uint32_t slots_for(uint32_t n)
{
    uint32_t slots = 16;
    while (slots < 2 * n)
        slots *= 2;
    return slots;
}

static int block_build(struct gguf *g, struct report *report)
{
    uint32_t key_slots = slots_for(g->n_keys), tensor_slots = slots_for(g->n_tensors);
    uint64_t n_strings = g->parts[0].head.n_strings;
    uint64_t parts[5] = {
        (uint64_t)g->n_tensors * sizeof *g->tensors,
        (uint64_t)g->n_keys * sizeof *g->keys,
        (uint64_t)key_slots * sizeof(uint32_t),
        (uint64_t)tensor_slots * sizeof(uint32_t),
        0,
    };
    uint64_t at[5] = {0}, bytes = 0;
    bool overflow = checked_mul(n_strings, sizeof(uint32_t), &parts[4]);
    for (int i = 0; i < 5 && !overflow; i++) {
        at[i] = bytes;
        overflow = checked_add(bytes, parts[i], &bytes) || checked_align(bytes, 16, &bytes);
    }
    if (overflow || (g->block = calloc(1, bytes)) == NULL)
        return report_fail(report, INFER_E_OUT_OF_MEMORY,
                           "no memory for the %" PRIu32 " keys and %" PRIu32 " tensors of %.128s",
                           g->n_keys, g->n_tensors, gguf_file_name(g->parts[0].path));
    char *base = g->block;
    g->tensors = (void *)(base + at[0]);
    g->keys = (void *)(base + at[1]);
    g->key_slots = (void *)(base + at[2]);
    g->tensor_slots = (void *)(base + at[3]);
    g->string_index = (void *)(base + at[4]);
    g->key_mask = key_slots - 1;
    g->tensor_mask = tensor_slots - 1;
    return 0;
}

/* ---- the two hash tables --------------------------------------------------------------------- */

/* Index of the key, or -1 with *ret_slot a free slot (UINT32_MAX: the chain is too long). */
static int64_t key_find(const struct gguf *g, const void *name, size_t bytes, uint32_t hash,
                        uint32_t *ret_slot)
{
    for (uint32_t probe = 0; probe < PROBES_MAX; probe++) {
        uint32_t slot = (hash + probe) & g->key_mask;
        uint32_t entry = g->key_slots[slot];
        if (entry == 0) {
            *ret_slot = slot;
            return -1;
        }
        const struct gguf_head_key *key = &g->keys[entry - 1];
        if (key->hash == hash && key->name_bytes == bytes &&
            memcmp(g->data + key->name, name, bytes) == 0)
            return entry - 1;
    }
    *ret_slot = UINT32_MAX;
    return -1;
}

static int64_t tensor_find(const struct gguf *g, const char *name, uint32_t *ret_slot)
{
    uint32_t hash = gguf_hash(name, strlen(name));
    for (uint32_t probe = 0; probe < PROBES_MAX; probe++) {
        uint32_t slot = (hash + probe) & g->tensor_mask;
        uint32_t entry = g->tensor_slots[slot];
        if (entry == 0) {
            *ret_slot = slot;
            return -1;
        }
        if (strcmp(g->tensors[entry - 1].tensor.name, name) == 0)
            return entry - 1;
    }
    *ret_slot = UINT32_MAX;
    return -1;
}

/* ---- the second pass ------------------------------------------------------------------------- */

static int keys_fill(struct gguf *g, struct report *report)
{
    struct gguf_head *h = &g->parts[0].head;
    uint64_t strings = 0;
    gguf_head_rewind(h);
    for (uint32_t i = 0; i < g->n_keys; i++) {
        struct gguf_head_key key;
        int r = gguf_head_key(h, &key, g->string_index + strings);
        assert(r == 0 && "the first pass accepted this key");
        if (key.type == GGUF_ARRAY && key.element == GGUF_STRING) {
            key.index = (uint32_t)strings;
            strings += key.n;
        }
        const char *name = (const char *)h->data + key.name;
        int shown = key.name_bytes < 100 ? (int)key.name_bytes : 100;
        uint32_t slot = 0;
        if (key_find(g, name, key.name_bytes, key.hash, &slot) >= 0)
            return report_fail(report, INFER_E_MODEL_FORMAT, "%.128s: key '%.*s' appears twice",
                               gguf_file_name(g->parts[0].path), shown, name);
        if (slot == UINT32_MAX)
            return report_fail(report, INFER_E_MODEL_FORMAT,
                               "%.128s: key '%.*s' collides with %u others, as no honest file's do",
                               gguf_file_name(g->parts[0].path), shown, name, PROBES_MAX);
        g->keys[i] = key;
        g->key_slots[slot] = i + 1;
        (void)r;
    }
    assert(strings == h->n_strings);
    return 0;
}

static int tensors_fill(struct gguf *g, uint32_t part, uint32_t first, struct report *report)
{
    struct gguf_head *h = &g->parts[part].head;
    h->at = h->first_tensor;
    for (uint32_t i = 0; i < h->n_tensors; i++) {
        struct gguf_tensor *t = &g->tensors[first + i];
        int r = gguf_head_tensor(h, t);
        assert(r == 0 && "the first pass accepted this tensor");
        (void)r;
        t->part = part;
        uint32_t slot = 0;
        if (tensor_find(g, t->tensor.name, &slot) >= 0)
            return report_fail(report, INFER_E_MODEL_FORMAT, "%.128s: tensor '%s' appears twice",
                               gguf_file_name(g->parts[part].path), t->tensor.name);
        if (slot == UINT32_MAX)
            return report_fail(
                report, INFER_E_MODEL_FORMAT,
                "%.128s: tensor '%s' collides with %u others, as no honest file's do",
                gguf_file_name(g->parts[part].path), t->tensor.name, PROBES_MAX);
        g->tensor_slots[slot] = first + i + 1;
    }
    return 0;
}

static int by_offset(const void *a, const void *b)
{
    const struct gguf_tensor *x = *(const struct gguf_tensor *const *)a;
    const struct gguf_tensor *y = *(const struct gguf_tensor *const *)b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* No two of n tensors of one part share a byte. */
static int tensors_check_overlap(const struct gguf *g, uint32_t first, uint32_t n,
                                 struct report *report)
{
    const struct gguf_tensor **order = calloc(n + 1, sizeof(struct gguf_tensor *));
    if (order == NULL)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory to check %" PRIu32 " tensors",
                           n);
    for (uint32_t i = 0; i < n; i++)
        order[i] = &g->tensors[first + i];
    qsort(order, n, sizeof(struct gguf_tensor *), by_offset);
    int r = 0;
    for (uint32_t i = 1; i < n && r == 0; i++) {
        const struct gguf_tensor *a = order[i - 1], *b = order[i];
        if (b->offset - a->offset < a->bytes) /* extents were bounded: cannot wrap */
            r = report_fail(report, INFER_E_MODEL_FORMAT,
                            "%.128s: tensor '%s' at byte %" PRIu64
                            " begins within tensor '%s', which ends at byte %" PRIu64,
                            gguf_file_name(g->parts[a->part].path), b->tensor.name, b->offset,
                            a->tensor.name, a->offset + a->bytes);
    }
    free(order);
    return r;
}

static int gguf_build(struct gguf *g, struct report *report)
{
    int r = block_build(g, report);
    if (r < 0)
        return r;
    g->data = g->parts[0].head.data;
    r = keys_fill(g, report);
    if (r < 0)
        return r;
    uint32_t first = 0;
    for (uint32_t part = 0; part < g->n_parts; part++) {
        uint32_t n = (uint32_t)g->parts[part].head.n_tensors;
        r = tensors_fill(g, part, first, report);
        if (r < 0)
            return r;
        r = tensors_check_overlap(g, first, n, report);
        if (r < 0)
            return r;
        first += n;
        if (part > 0)
            gguf_head_done(&g->parts[part].head);
        g->parts[part].head.report = NULL;
        g->parts[part].head.reader = NULL;
    }
    return 0;
}

/* Gives back what was read of part 1 beyond its head. */
static void gguf_trim(struct gguf *g)
{
    struct gguf_head *h = &g->parts[0].head;
    uint8_t *data = realloc(h->data, h->at);
    if (data == NULL)
        return;
    h->data = data;
    h->loaded = h->capacity = h->at;
    g->data = data;
}

static int open_all(const char *path, const struct given *given, struct gguf **ret,
                    struct report *report)
{
    struct gguf *g = calloc(1, sizeof *g);
    if (g == NULL)
        return report_fail(report, INFER_E_OUT_OF_MEMORY, "no memory for a model file");
    int r = parts_open(g, path, given, report);
    if (r == 0)
        r = gguf_build(g, report);
    if (r < 0) {
        gguf_free(g);
        return r;
    }
    gguf_trim(g);
    *ret = g;
    return 0;
}

int gguf_open(const char *path, struct gguf **ret, struct report *report)
{
    static const struct given none;
    return open_all(path, &none, ret, report);
}

int gguf_open_files(const char *name, const int *fds, uint32_t n, const struct gguf_reader *reader,
                    struct gguf **ret, struct report *report)
{
    assert(n > 0);
    struct given given = {fds, n, reader};
    return open_all(name, &given, ret, report);
}

void gguf_free(struct gguf *g)
{
    if (g == NULL)
        return;
    for (uint32_t i = 0; i < g->n_parts; i++)
        part_close(&g->parts[i]);
    free(g->parts);
    free(g->block);
    free(g);
}

/* ---- keys ------------------------------------------------------------------------------------ */

static const struct gguf_head_key *key_get(const struct gguf *g, const char *name)
{
    size_t bytes = strlen(name);
    uint32_t slot = 0;
    int64_t i = key_find(g, name, bytes, gguf_hash(name, bytes), &slot);
    return i < 0 ? NULL : &g->keys[i];
}

/* An integer value as two's complement, and whether it is negative. */
static bool key_integer(const struct gguf *g, const struct gguf_head_key *key, int64_t *ret,
                        bool *ret_negative)
{
    union {
        uint8_t u8;
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        uint64_t u64;
        int64_t i64;
    } v = {.u64 = 0};
    memcpy(&v, g->data + key->value, gguf_value_bytes(key->type));
    *ret_negative = false;
    switch (key->type) {
    case GGUF_UINT8:
    case GGUF_UINT16:
    case GGUF_UINT32:
    case GGUF_UINT64:
        *ret = (int64_t)v.u64;
        return true;
    case GGUF_INT8:
        *ret = v.i8;
        break;
    case GGUF_INT16:
        *ret = v.i16;
        break;
    case GGUF_INT32:
        *ret = v.i32;
        break;
    case GGUF_INT64:
        *ret = v.i64;
        break;
    default:
        return false;
    }
    *ret_negative = *ret < 0;
    return true;
}

bool gguf_get_u64(const struct gguf *g, const char *key, uint64_t *ret)
{
    const struct gguf_head_key *k = key_get(g, key);
    int64_t v = 0;
    bool negative = false;
    if (k == NULL || !key_integer(g, k, &v, &negative) || negative)
        return false;
    *ret = (uint64_t)v;
    return true;
}

bool gguf_get_u32(const struct gguf *g, const char *key, uint32_t *ret)
{
    uint64_t v = 0;
    if (!gguf_get_u64(g, key, &v) || v > UINT32_MAX)
        return false;
    *ret = (uint32_t)v;
    return true;
}

static double key_double(const struct gguf *g, const struct gguf_head_key *key)
{
    float f;
    double d;
    if (key->type == GGUF_FLOAT64) {
        memcpy(&d, g->data + key->value, sizeof d);
        return d;
    }
    memcpy(&f, g->data + key->value, sizeof f);
    return (double)f;
}

/* A float64 outside of float32's range is not one of these. */
bool gguf_get_f32(const struct gguf *g, const char *key, float *ret)
{
    const struct gguf_head_key *k = key_get(g, key);
    if (k == NULL || (k->type != GGUF_FLOAT32 && k->type != GGUF_FLOAT64))
        return false;
    double v = key_double(g, k);
    if (isfinite(v) && fabs(v) > (double)FLT_MAX)
        return false;
    *ret = (float)v;
    return true;
}

bool gguf_get_bool(const struct gguf *g, const char *key, bool *ret)
{
    const struct gguf_head_key *k = key_get(g, key);
    if (k == NULL || k->type != GGUF_BOOL)
        return false;
    *ret = g->data[k->value] != 0;
    return true;
}

bool gguf_get_string(const struct gguf *g, const char *key, struct gguf_string *ret)
{
    const struct gguf_head_key *k = key_get(g, key);
    if (k == NULL || k->type != GGUF_STRING)
        return false;
    ret->data = (const char *)g->data + k->value;
    ret->bytes = k->n;
    return true;
}

bool gguf_has(const struct gguf *g, const char *key, enum gguf_value_type *ret_type)
{
    const struct gguf_head_key *k = key_get(g, key);
    if (k == NULL)
        return false;
    if (ret_type != NULL)
        *ret_type = (enum gguf_value_type)k->type;
    return true;
}

bool gguf_get_array(const struct gguf *g, const char *key, enum gguf_value_type element,
                    uint64_t *ret_n)
{
    const struct gguf_head_key *k = key_get(g, key);
    if (k == NULL || k->type != GGUF_ARRAY || k->element != element)
        return false;
    *ret_n = k->n;
    return true;
}

static struct gguf_string array_string(const struct gguf *g, const struct gguf_head_key *k,
                                       uint64_t i)
{
    uint32_t offset = g->string_index[k->index + i];
    uint64_t bytes;
    memcpy(&bytes, g->data + offset - sizeof bytes, sizeof bytes);
    return (struct gguf_string){.data = (const char *)g->data + offset, .bytes = bytes};
}

struct gguf_string gguf_array_string(const struct gguf *g, const char *key, uint64_t i)
{
    const struct gguf_head_key *k = key_get(g, key);
    if (k == NULL || k->type != GGUF_ARRAY || k->element != GGUF_STRING || i >= k->n)
        return (struct gguf_string){.data = "", .bytes = 0};
    return array_string(g, k, i);
}

const void *gguf_array_data(const struct gguf *g, const char *key)
{
    const struct gguf_head_key *k = key_get(g, key);
    if (k == NULL || k->type != GGUF_ARRAY || k->element == GGUF_STRING)
        return NULL;
    return g->data + k->value;
}

uint64_t gguf_n_keys(const struct gguf *g)
{
    return g->n_keys;
}

struct gguf_string gguf_key(const struct gguf *g, uint64_t i, enum gguf_value_type *ret_type)
{
    const struct gguf_head_key *k = &g->keys[i];
    if (ret_type != NULL)
        *ret_type = (enum gguf_value_type)k->type;
    return (struct gguf_string){.data = (const char *)g->data + k->name, .bytes = k->name_bytes};
}

/* "\"text\"", cut to fit, control bytes as '?'. */
static void string_text(struct gguf_string s, char *text, size_t size)
{
    size_t n = 0;
    bool whole = s.bytes + 3 <= size;
    size_t room = whole ? s.bytes : size > 6 ? size - 6 : 0;
    while (!whole && room > 0 && ((unsigned char)s.data[room] & 0xc0) == 0x80)
        room--; /* not in the middle of a UTF-8 sequence */
    if (size < 7) {
        snprintf(text, size, "\"");
        return;
    }
    text[n++] = '"';
    for (size_t i = 0; i < room; i++) {
        unsigned char c = (unsigned char)s.data[i];
        text[n++] = c < 0x20 || c == 0x7f ? '?' : (char)c;
    }
    snprintf(text + n, size - n, "%s", whole ? "\"" : "\"...");
}

void gguf_key_text(const struct gguf *g, uint64_t i, char *text, size_t size)
{
    static const char *const names[] = {"uint8",  "int8",    "uint16",  "int16", "uint32",
                                        "int32",  "float32", "boolean", "text",  "array of",
                                        "uint64", "int64",   "float64"};
    const struct gguf_head_key *k = &g->keys[i];
    int64_t v = 0;
    bool negative = false;
    if (size == 0)
        return;
    if (k->type == GGUF_STRING)
        string_text((struct gguf_string){(const char *)g->data + k->value, k->n}, text, size);
    else if (k->type == GGUF_ARRAY && k->element == GGUF_STRING)
        snprintf(text, size, "[%" PRIu64 " strings]", k->n);
    else if (k->type == GGUF_ARRAY)
        snprintf(text, size, "[%" PRIu64 " %s]", k->n, names[k->element]);
    else if (k->type == GGUF_BOOL)
        snprintf(text, size, "%s", g->data[k->value] ? "true" : "false");
    else if (!key_integer(g, k, &v, &negative))
        snprintf(text, size, "%.7g", key_double(g, k));
    else if (negative)
        snprintf(text, size, "%" PRId64, v);
    else
        snprintf(text, size, "%" PRIu64, (uint64_t)v);
}

/* ---- tensors and parts ----------------------------------------------------------------------- */

uint32_t gguf_n_tensors(const struct gguf *g)
{
    return g->n_tensors;
}

const struct gguf_tensor *gguf_tensor(const struct gguf *g, uint32_t i)
{
    return i < g->n_tensors ? &g->tensors[i] : NULL;
}

const struct gguf_tensor *gguf_find_tensor(const struct gguf *g, const char *name)
{
    uint32_t slot = 0;
    int64_t i = tensor_find(g, name, &slot);
    return i < 0 ? NULL : &g->tensors[i];
}

uint32_t gguf_n_parts(const struct gguf *g)
{
    return g->n_parts;
}

int gguf_part_fd(const struct gguf *g, uint32_t part)
{
    return g->parts[part].fd;
}

const char *gguf_part_path(const struct gguf *g, uint32_t part)
{
    return g->parts[part].path;
}

uint64_t gguf_part_bytes(const struct gguf *g, uint32_t part)
{
    return g->parts[part].bytes;
}

uint32_t gguf_version(const struct gguf *g)
{
    return g->parts[0].head.version;
}
