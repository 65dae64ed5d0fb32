/* chat_private.h: between chat.c (recognition) and chat_families.c (rendering). */
#ifndef INFERD_MODEL_CHAT_PRIVATE_H
#define INFERD_MODEL_CHAT_PRIVATE_H

#include "model/chat.h"

#include <string.h>

struct chat_slice {
    const char *data;
    size_t bytes;
};

/* What a system message becomes. */
enum chat_system {
    CHAT_SYSTEM_REFUSED,
    CHAT_SYSTEM_FIRST,  /* put before the first user message */
    CHAT_SYSTEM_LAST,   /* put before the last one */
    CHAT_SYSTEM_MARKED, /* has markup of its own */
    CHAT_SYSTEM_DROPPED,
};

struct chat_output;

struct chat_family {
    const char *name;
    /* Marks, all of which the template's text has; the first family of the table that fits wins. */
    const char *marks[3];
    /* Reads the variations out of the text; may be NULL. */
    void (*read)(struct chat_template *t);
    int (*render)(const struct chat_template *t, const struct chat_message *m, size_t n,
                  bool generate, struct chat_output *o);
};

struct chat_template {
    const struct chat_family *family;
    char *source; /* the template with every " as ' and every \n escape as a newline */
    char *bos, *eos;
    /* variations; each family uses some */
    char *default_system; /* NULL: none */
    enum chat_system system;
    bool trim;                /* contents lose white space at their ends */
    bool any_role;            /* any role has markup, not only the three */
    bool known_roles;         /* only system, user and assistant */
    bool prompts_itself;      /* Phi-3: asks for an answer behind each question */
    bool prompts_once;        /* Phi-3: does not ask for one behind an answer */
    bool drops_empty_system;  /* Phi-3 */
    bool thinks;              /* earlier answers lose their thoughts */
    const char *open, *close; /* around a user's message */
    const char *lead, *tail;  /* around an answer */
    const char *prompt;       /* asks for an answer */
    const char *system_open, *system_close;
};

/* The text that grows. Once `failed` is set nothing is put any more. */
struct chat_output {
    struct chat_text text;
    size_t text_room, plain_room;
    int failed; /* 0, -ENOMEM, or the report's code, negative */
    struct report *report;
};

extern const struct chat_family chat_families[];
extern const size_t chat_n_families;

/* Text of the template. */
void chat_put(struct chat_output *o, const char *text);
/* Text of a message, which may not name special tokens. */
void chat_put_plain(struct chat_output *o, struct chat_slice s);
/* Refuses; returns the negative code. */
int chat_refuse(struct chat_output *o, const char *why);

static inline bool chat_has(const struct chat_template *t, const char *mark)
{
    return strstr(t->source, mark) != NULL;
}

static inline bool chat_role_is(const struct chat_message *m, const char *role)
{
    return m->role_bytes == strlen(role) && memcmp(m->role, role, m->role_bytes) == 0;
}

#endif
