/* gguf_head.h: the head of one GGUF file (magic, keys, tensor infos), read item by item.
 *
 * Private to gguf.c. The head is copied into memory (never mapped: a file that is cut while it is
 * mapped kills the reader), growing as far as the items reach. gguf_head_measure() walks it once
 * and refuses whatever is wrong with an item by itself; after that gguf_head_rewind() and the same
 * item functions walk it again and cannot fail. */
#ifndef INFERD_MODEL_GGUF_HEAD_H
#define INFERD_MODEL_GGUF_HEAD_H

#include "model/gguf.h"

/* A key, as offsets into gguf_head.data. */
struct gguf_head_key {
    uint32_t name, name_bytes, hash;
    uint8_t type;    /* enum gguf_value_type */
    uint8_t element; /* of an array */
    uint32_t value;  /* the scalar, the string's bytes or the array's first element */
    uint64_t n;      /* bytes of a string, elements of an array, otherwise 1 */
    uint32_t index;  /* array of strings: where its offsets begin in gguf.string_index */
};

struct gguf_head {
    int fd;
    const char *path; /* borrowed */
    uint64_t file_bytes;
    const struct gguf_reader *reader; /* NULL: pread(); used by the first walk alone */
    struct report *report;

    uint8_t *data;             /* [0, loaded) of the file */
    uint64_t loaded, capacity; /* loaded <= capacity <= GGUF_HEAD_MAX */
    uint64_t at;               /* <= loaded */
    /* what is being read, for the sentence of a refusal */
    const char *item; /* "key", "tensor" or "the head" */
    uint32_t item_name, item_name_bytes;

    uint32_t version;
    uint64_t n_keys, n_tensors;
    uint64_t first_key; /* offset of the first key */
    /* known after gguf_head_measure() */
    uint64_t first_tensor; /* offset of the first tensor info */
    uint64_t n_strings;    /* strings in arrays */
    uint64_t data_start;   /* of the tensors' bytes in the file */
    uint32_t alignment;
    bool is_split; /* split.count is there */
    uint64_t split_no, split_count, split_tensors;
};

/* Reads magic, version and counts. On failure nothing is held. */
int gguf_head_init(struct gguf_head *h, int fd, const char *path, uint64_t file_bytes,
                   const struct gguf_reader *reader, struct report *report);
void gguf_head_done(struct gguf_head *h);
int gguf_head_measure(struct gguf_head *h);
/* To the first key; after the last key the next item is the first tensor. */
void gguf_head_rewind(struct gguf_head *h);
/* offsets: NULL, or room for the offset of every string of an array of strings. */
int gguf_head_key(struct gguf_head *h, struct gguf_head_key *ret, uint32_t *offsets);
/* ret->offset is from the start of the file (measured), ret->part is 0. */
int gguf_head_tensor(struct gguf_head *h, struct gguf_tensor *ret);

/* Bytes of one value; 0 for strings, arrays and what is not a type. */
uint32_t gguf_value_bytes(uint32_t type);
uint32_t gguf_hash(const void *bytes, size_t n);
/* The last component of a path, for messages. */
const char *gguf_file_name(const char *path);

#endif
