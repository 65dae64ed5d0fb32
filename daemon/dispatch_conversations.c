/* dispatch_conversations.c: what an answer leaves behind, and who continues it.
 *
 * A request that keeps a conversation has it (it is busy) from its admission to its end. Its past
 * becomes the sequence's when that is made, and comes back with the answer behind it, however the
 * request ended, as soon as one token was drawn; before that it comes back as it was.
 *
 * Host memory of pasts counts as held. Pages are held by those pasts alone whose window has slid: a
 * quarter of a model's at the most, and idle conversations give theirs before anything that runs
 * is preempted. They are saved to the store then, where they are the first to go when it is full;
 * one for which there is no room is forgotten. What continues one that is in the store has its
 * state from there when it starts, as after a preemption.
 *
 * Tokens outlive their model, to be computed again when it is back; a state does not. What is in
 * the store is laid out as the model's pages were, and the next load may have other cache types, or
 * another file: it would take a proof that nothing differs to save what one prompt costs. */
#include "dispatch_internal.h"

#include "base/clock.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

/* Of a model's pages, the pasts of idle conversations hold one part in so many at the most. */
#define PAST_PAGES_SHARE 4u

/* Pages that the pasts of idle conversations hold, of the past's model. */
static uint32_t *idle_pages(struct dispatch *d, const struct engine_past *past)
{
    return &d->past_pages[engine_past_model(past) - d->config.models];
}

/* Of an idle conversation. */
static void release_past(void *ctx, void *past, void *saved)
{
    struct dispatch *d = ctx;
    *idle_pages(d, past) -= engine_past_pages(past);
    engine_past_free(past);
    if (saved != NULL)
        swap_give(d->swap, saved);
}

int dispatch_conversations_new(struct dispatch *d)
{
    struct conversations_config config = {.max = INFER_CONVERSATIONS_MAX,
                                          .user_max = INFER_CONVERSATIONS_USER_MAX,
                                          .idle_us = d->config.conversation_idle_us,
                                          .ctx = d,
                                          .release = release_past};
    return conversations_new(&config, &d->conversations);
}

/* The same words for an unknown id, another user's, and one that was idle for too long. */
static int report_missing(struct report *report, int rc)
{
    if (rc == -EBUSY)
        return report_fail(report, INFER_E_CONVERSATION,
                           "another request has this conversation; wait for its end");
    return report_fail(report, INFER_E_NOT_FOUND, "no conversation has this id");
}

static int begin_conversation(struct dispatch *d, struct job *job, uint32_t uid)
{
    int rc =
        conversations_add(d->conversations, job->id, uid, job->admitted_us, &job->conversation);
    if (rc < 0)
        return report_fail(&job->report, INFER_E_QUEUE_FULL,
                           "requests have all the conversations that this user, or the daemon, may "
                           "keep; wait for one to end");
    job->conversation->model = job->model_index;
    d->metrics.conversations_begun++;
    return 0;
}

/* "" is the model that the conversation is with. */
static int check_model(const struct dispatch *d, struct job *job)
{
    const char *name = d->slots[job->conversation->model].is.about.name;
    if (job->ask.model[0] != '\0' && strcmp(job->ask.model, name) != 0)
        return report_fail(&job->report, INFER_E_BAD_PARAMETER,
                           "the conversation is with model '%s', not '%s'", name, job->ask.model);
    job->model = &d->config.models[job->conversation->model];
    job->model_index = job->conversation->model;
    return 0;
}

int dispatch_take_conversation(struct dispatch *d, struct job *job)
{
    uint32_t uid = session_peer(job->client->session)->uid;
    if (!(job->ask.flags & INFER_ABI_KEEP))
        return 0;
    if (job->ask.conversation == 0)
        return begin_conversation(d, job, uid);
    int rc = conversations_take(d->conversations, job->ask.conversation, uid, job->admitted_us,
                                &job->conversation);
    if (rc < 0)
        return report_missing(&job->report, rc);
    job->past = job->conversation->past;
    job->saved = job->conversation->saved;
    job->conversation->saved = NULL;
    job->preempted = job->saved != NULL;
    if (job->saved != NULL)
        swap_set_owner(job->saved, job);
    uint32_t n_pages = engine_past_pages(job->past);
    *idle_pages(d, job->past) -= n_pages;
    job->continues = true;
    d->metrics.conversations_continued++;
    job->id = job->conversation->id;
    rc = check_model(d, job);
    if (rc == 0)
        dispatch_lend_pages(d, job, n_pages);
    return rc;
}

void dispatch_lend_pages(struct dispatch *d, struct job *job, uint32_t n_pages)
{
    d->lent_pages[job->model_index] += n_pages - job->n_lent;
    job->n_lent = n_pages;
}

static bool holds_pages_of(const void *model, const struct conversation *one)
{
    return engine_past_pages(one->past) > 0 && engine_past_model(one->past) == model;
}

bool dispatch_give_past_pages(struct dispatch *d, uint32_t model)
{
    const struct engine_model *m = &d->config.models[model];
    struct conversation *one = NULL;
    if (d->past_pages[model] > 0)
        one = conversations_oldest(d->conversations, holds_pages_of, m);
    if (one == NULL)
        return false;
    uint32_t n_pages = engine_past_pages(one->past);
    one->saved = dispatch_save_past(d, one->past); /* others may go for it, but not this one */
    if (one->saved == NULL)
        return conversations_forget_oldest(d->conversations, holds_pages_of, m);
    d->past_pages[model] -= n_pages;
    return true;
}

/* In the store, and not on its way: then its room is free at once. */
static bool is_stored(const void *ctx, const struct conversation *one)
{
    (void)ctx;
    return one->saved != NULL && swap_place(one->saved) != SWAP_GOING &&
           swap_place(one->saved) != SWAP_COMING;
}

bool dispatch_forget_stored(struct dispatch *d)
{
    return conversations_forget_oldest(d->conversations, is_stored, NULL);
}

static bool is_of(const void *model, const struct conversation *one)
{
    return engine_past_model(one->past) == model;
}

void dispatch_forget_model(struct dispatch *d, uint32_t model)
{
    while (conversations_forget_oldest(d->conversations, is_of, &d->config.models[model]))
        ;
}

static bool is_more(const struct engine_past *past)
{
    return engine_past_pages(past) > 0 || engine_past_is_saved(past);
}

static bool is_more_of(const void *model, const struct conversation *one)
{
    return is_of(model, one) && is_more(one->past);
}

void dispatch_forget_states(struct dispatch *d, uint32_t model)
{
    while (conversations_forget_oldest(d->conversations, is_more_of, &d->config.models[model]))
        ;
    assert(d->past_pages[model] == 0);
}

bool dispatch_has_state(const struct job *job)
{
    return job->past != NULL && is_more(job->past);
}

/* Before a past that holds pages becomes idle: older ones make room. */
static void bound_pages(struct dispatch *d, const struct engine_past *past)
{
    uint32_t model = (uint32_t)(engine_past_model(past) - d->config.models);
    if (engine_past_pages(past) == 0)
        return; /* its model may not be loaded */
    uint32_t most = kv_pool_pages(d->config.models[model].pool) / PAST_PAGES_SHARE;
    while (d->past_pages[model] + engine_past_pages(past) > most)
        if (!dispatch_give_past_pages(d, model))
            break;
}

/* What the sequence leaves: NULL when there is nothing to continue, be it that its state was saved
 * and the store has lost it. */
static struct engine_past *past_of(struct job *job)
{
    struct engine_past *past = NULL;
    if (job->sequence->n_generated > 0)
        engine_sequence_keep(job->sequence, &past);
    else if (job->continues)
        engine_sequence_revert(job->sequence, &past);
    bool lost = job->saved == NULL || swap_place(job->saved) == SWAP_LOST;
    if (past != NULL && engine_past_is_saved(past) && lost) {
        engine_past_free(past);
        past = NULL;
    }
    return past;
}

void dispatch_put_conversation(struct dispatch *d, struct job *job)
{
    struct conversation *one = job->conversation;
    if (one == NULL)
        return;
    dispatch_lend_pages(d, job, 0);
    struct engine_past *past = one->past;
    if (job->sequence != NULL) {
        one->past = NULL; /* the sequence has it */
        past = past_of(job);
    }
    job->conversation = NULL;
    job->past = NULL;
    if (past != NULL && engine_past_is_saved(past)) {
        one->saved = job->saved;
        swap_set_owner(job->saved, NULL);
        job->saved = NULL;
        job->fetching = false;
    }
    if (past == NULL) {
        conversations_put(d->conversations, one, NULL, 0, 0);
        return;
    }
    bound_pages(d, past);
    *idle_pages(d, past) += engine_past_pages(past);
    conversations_put(d->conversations, one, past, engine_past_bytes(past), clock_us());
}

void dispatch_forget_conversation(struct dispatch *d, struct job *job)
{
    uint32_t uid = session_peer(job->client->session)->uid;
    int rc = conversations_forget(d->conversations, job->ask.target, uid, job->admitted_us);
    if (rc < 0)
        report_missing(&job->report, rc);
    dispatch_finish(d, job, rc < 0 ? INFER_FINISH_ERROR : INFER_FINISH_NONE, job->report.code,
                    NULL);
}
