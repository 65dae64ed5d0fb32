/* manage.h: what managers ask for: load, unload, reload (abi.h has the protocol).
 *
 * Threads: the event thread's. */
#ifndef INFERD_MANAGE_H
#define INFERD_MANAGE_H

#include "io/loop.h"
#include "models.h"

struct manage;

struct manage_config {
    struct loop *loop;
    struct models *models;
    /* Reads the configuration again. 0: text says what changed; negative: nothing has, it says
     * why. */
    int (*reload)(void *ctx, struct report *report);
    void *ctx;
};

/* -ENOMEM. */
int manage_new(const struct manage_config *config, struct manage **ret);
/* Hangs up on everybody; before models_stop(). NULL is allowed. */
void manage_free(struct manage *m);

/* A manager's connection, taken over: non-blocking, SOCK_SEQPACKET, its peer checked. */
void manage_accept(struct manage *m, int fd);

#endif
