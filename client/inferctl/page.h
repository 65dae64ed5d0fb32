/* page.h: the daemon's status page as lines and JSON. Used by top and ps. */
#ifndef INFERCTL_PAGE_H
#define INFERCTL_PAGE_H

#include "ctl.h"

/* Two readings of the page, so that rates can be told; and the names of the models. */
struct page_view {
    struct infer_page now, before;
    uint32_t n_readings;
    uint64_t read_us; /* CLOCK_MONOTONIC */
    struct infer_model *models;
    size_t n_models;
};

/* Connects and asks for the models, of which -m must be one. 0 or an exit status. */
int page_open(struct ctl *ctl, struct page_view *ret_view);
void page_done(struct page_view *view);

/* Reads the page; drops the sequences of other models than -m names, and sorts: those that run
 * first, those that wait by their place, users by uid. 0, or a code of infer_read_page(). */
int page_read(struct ctl *ctl, struct page_view *view);

/* Which columns a sequence has. */
#define PAGE_RATES       1u /* tokens per second, which takes two readings */
#define PAGE_NARROW      2u /* not the process, the class, and what is cached */
#define PAGE_WIDE_SCREEN 110u

/* Appends one line with its newline. */
void page_sequence_head(struct ctl_buffer *to, unsigned columns);
void page_sequence_line(struct ctl_buffer *to, const struct page_view *view, size_t i,
                        unsigned columns);
void page_user_head(struct ctl_buffer *to);
void page_user_line(struct ctl_buffer *to, const struct page_view *view, size_t i);
/* Four lines about the daemon. */
void page_summary(struct ctl_buffer *to, const struct page_view *view);

json_t *page_sequences_json(const struct page_view *view);
json_t *page_json(const struct page_view *view);

#endif
