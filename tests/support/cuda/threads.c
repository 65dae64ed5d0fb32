/* threads.c: runs the blocks of a kernel on the processor, one after the other, or those together
 * that are launched so.
 *
 * Owns a pool of fibers, one per thread of such blocks, each with a stack of its own that stays for
 * the next blocks and the next kernel. A fiber runs until it waits (a barrier, an exchange between
 * lanes) or ends, then switches to the next one that can go on; when none can, the kernel hangs,
 * which is said with its name. The order in which threads are let go changes with every barrier,
 * from first to last or from last to first, by a fixed rule: what a kernel forgot to wait for, one
 * of the two shows.
 *
 * One launch at a time; the caller holds a lock. Nothing here is fast in the sense of the real
 * thing: a switch takes some 10 ns.
 *
 * Limits: 1024 threads a block, 8 blocks and 4096 threads together, 64 KiB of stack a thread
 * (256 under AddressSanitizer) with an unmapped page below. */
#include "threads.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#ifndef __x86_64__
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif
#ifdef WITH_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define STACK_BYTES ((size_t)256 << 10)
#else
#define STACK_BYTES ((size_t)64 << 10)
#endif

#define THREADS_MAX 4096u
#define BLOCKS_MAX  8u
#define NAMED_MAX   16u /* barriers of some of a block's threads */
#define PAGE        ((size_t)4096)

/* ---- shared memory --------------------------------------------------------------------------- */

static _Alignas(1024) unsigned char shared_memory[BLOCKS_MAX][EMULATED_SHARED_MAX];

static unsigned char *shared_of(unsigned int rank)
{
    return shared_memory[rank];
}

/* As much as was asked for; the sanitizer knows where it ends. */
static void open_shared(size_t bytes)
{
#ifdef WITH_ASAN
    for (unsigned int rank = 0; rank < BLOCKS_MAX; rank++) {
        __asan_unpoison_memory_region(shared_memory[rank], bytes);
        __asan_poison_memory_region(shared_memory[rank] + bytes, EMULATED_SHARED_MAX - bytes);
    }
#endif
}

/* ---- fibers ---------------------------------------------------------------------------------- */

struct context {
#ifdef __x86_64__
    void *sp;
#else
    ucontext_t u;
#endif
    void *fake_stack; /* AddressSanitizer's */
    const void *stack;
    size_t stack_bytes;
};

#ifdef __x86_64__
/* Saves what a call must preserve, on the stack, and goes on where `to` was left. */
void emulated_switch(void **ret_from, void *to);
__asm__(".text\n"
        ".p2align 4\n"
        ".globl emulated_switch\n"
        ".hidden emulated_switch\n"
        ".type emulated_switch, @function\n"
        "emulated_switch:\n"
        "  pushq %rbp\n"
        "  pushq %rbx\n"
        "  pushq %r12\n"
        "  pushq %r13\n"
        "  pushq %r14\n"
        "  pushq %r15\n"
        "  movq %rsp, (%rdi)\n"
        "  movq %rsi, %rsp\n"
        "  popq %r15\n"
        "  popq %r14\n"
        "  popq %r13\n"
        "  popq %r12\n"
        "  popq %rbx\n"
        "  popq %rbp\n"
        "  ret\n"
        ".size emulated_switch, .-emulated_switch\n");
#endif

struct copy {
    void *to;
    const void *from;
    unsigned int bytes, group;
};

struct fiber {
    struct emulated_thread thread; /* first: emulated_self points here */
    struct context context;
    unsigned int number;
    bool waited;
    struct copy *copies; /* under way, oldest first */
    unsigned int n_copies, copies_room, copy_group;
};

struct warp {
    emulated_slots slots[2];
    unsigned int n_lanes, arrived, ended, generation;
    const char *what;
    emulated_combine combine;
    uint32_t waiting; /* lanes */
};

/* Of threads first .. first + n - 1, a block's. */
struct barrier {
    unsigned int first, n, n_alive;
    unsigned int arrived, generation;
    unsigned int yes[2], threads[2];
};

static struct {
    const struct emulated_launch *launch;
    struct fiber *fibers[THREADS_MAX];
    struct warp warps[THREADS_MAX / EMULATED_WARP];
    struct barrier blocks[BLOCKS_MAX];
    struct barrier named[BLOCKS_MAX][NAMED_MAX];
    struct barrier *waiting[THREADS_MAX]; /* where a thread is stopped, or NULL */
    struct context host;
    unsigned int n_threads, n_fibers; /* n_threads: of all that run */
    unsigned int n_alive;
    unsigned int n_yields;                                 /* since somebody did something */
    unsigned int ready[THREADS_MAX], ready_first, n_ready; /* a ring */
    unsigned int turn;                                     /* changes the order of threads */
    unsigned int n_waited;
    bool from_host; /* the switch under way left the host's stack, whose place is not known yet */
} now;

struct emulated_thread *emulated_self;
struct emulated_index emulated_block_dim, emulated_grid_dim;

void emulated_fail(const char *format, ...)
{
    const char *text = now.launch ? now.launch->text : "?";
    int depth = 0, end = 0;
    va_list list;
    for (; text[end] && (text[end] != ',' || depth); end++)
        depth += text[end] == '<' || text[end] == '('   ? 1
                 : text[end] == '>' || text[end] == ')' ? -1
                                                        : 0;
    fprintf(stderr, "emulated kernel %.*s (%s:%d)", end, text, now.launch ? now.launch->file : "?",
            now.launch ? now.launch->line : 0);
    if (emulated_self)
        fprintf(stderr, ", block %u,%u,%u of %u,%u,%u, thread %u,%u,%u", emulated_self->block.x,
                emulated_self->block.y, emulated_self->block.z, emulated_grid_dim.x,
                emulated_grid_dim.y, emulated_grid_dim.z, emulated_self->index.x,
                emulated_self->index.y, emulated_self->index.z);
    fprintf(stderr, ": ");
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fprintf(stderr, "\n");
    abort();
}

/* After a switch: tells the sanitizer, and learns from it where the host's stack is. */
static void arrived(void *fake_stack)
{
#ifdef WITH_ASAN
    const void *stack;
    size_t bytes;
    __sanitizer_finish_switch_fiber(fake_stack, &stack, &bytes);
    if (now.from_host) {
        now.host.stack = stack;
        now.host.stack_bytes = bytes;
    }
#endif
    now.from_host = false;
}

static void go(struct context *from, struct context *to)
{
    now.from_host = from == &now.host;
#ifdef WITH_ASAN
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->stack_bytes);
#endif
#ifdef __x86_64__
    emulated_switch(&from->sp, to->sp);
#else
    swapcontext(&from->u, &to->u);
#endif
    arrived(from->fake_stack);
}

static void make_ready(unsigned int thread)
{
    now.ready[(now.ready_first + now.n_ready++) % THREADS_MAX] = thread;
}

static __attribute__((noinline)) void hang(void)
{
    unsigned int at_barrier = 0, in_exchange = 0, i;
    const char *what = "";
    for (i = 0; i < now.n_threads; i++)
        at_barrier += now.waiting[i] != NULL;
    for (i = 0; i * EMULATED_WARP < now.n_threads; i++) {
        in_exchange += now.warps[i].arrived;
        if (now.warps[i].arrived)
            what = now.warps[i].what;
    }
    emulated_fail("nobody can go on: of %u threads %u have ended, %u wait at __syncthreads, %u "
                  "in %s for lanes that do not come, %u for a cuda_barrier",
                  now.n_threads, now.n_threads - now.n_alive, at_barrier, in_exchange,
                  in_exchange ? what : "a shuffle", now.n_ready);
}

/* Leaves the processor to the next thread that can run; returns when this one can. */
static void suspend(struct fiber *self)
{
    struct fiber *next;
    if (!now.n_ready)
        hang();
    next = now.fibers[now.ready[now.ready_first]];
    now.ready_first = (now.ready_first + 1) % THREADS_MAX;
    now.n_ready--;
    if (next != self) {
        emulated_self = &next->thread;
        go(&self->context, &next->context);
    }
}

/* ---- barriers -------------------------------------------------------------------------------- */

/* Lets all go that wait, from either end. */
static void open_barrier(struct barrier *b)
{
    unsigned int n = b->n, i;
    bool backwards = ++now.turn * 2654435761u >> 31;
    b->threads[b->generation & 1] = b->n_alive;
    b->generation++;
    b->arrived = 0;
    b->yes[b->generation & 1] = 0;
    for (i = 0; i < n; i++) {
        unsigned int thread = b->first + (backwards ? n - 1 - i : i);
        if (now.waiting[thread] == b) {
            now.waiting[thread] = NULL;
            make_ready(thread);
        }
    }
}

static unsigned int stop_at(struct barrier *b, int predicate, unsigned int *ret_threads)
{
    struct fiber *self = (struct fiber *)emulated_self;
    unsigned int parity = b->generation & 1;
    b->yes[parity] += predicate != 0;
    now.waiting[self->number] = b;
    now.n_yields = 0;
    if (++b->arrived == b->n_alive)
        open_barrier(b);
    suspend(self);
    if (ret_threads)
        *ret_threads = b->threads[parity];
    return b->yes[parity];
}

unsigned int emulated_barrier(int predicate, unsigned int *ret_threads)
{
    return stop_at(&now.blocks[emulated_self->rank], predicate, ret_threads);
}

void emulated_meet(unsigned int id, unsigned int n)
{
    struct barrier *b = &now.named[emulated_self->rank][id % NAMED_MAX];
    if (id == 0 || id >= NAMED_MAX || n == 0 || n % EMULATED_WARP || n > b->n)
        emulated_fail("%u threads at barrier %u", n, id);
    if (b->arrived && b->n_alive != n)
        emulated_fail("%u threads at barrier %u, where others wait for %u", n, id, b->n_alive);
    b->n_alive = n;
    stop_at(b, 0, NULL);
}

/* After so many turns of nothing but yields for each thread, nobody will ever do anything else. */
#define YIELDS_MAX 64u

void emulated_yield(void)
{
    struct fiber *self = (struct fiber *)emulated_self;
    if (now.n_yields++ > YIELDS_MAX * now.n_threads)
        hang();
    make_ready(self->number);
    suspend(self);
}

/* ---- lanes of a warp ------------------------------------------------------------------------- */

emulated_slots *emulated_exchange(const char *what, uint32_t mask, const void *words,
                                  unsigned int n_words, emulated_combine combine)
{
    struct fiber *self = (struct fiber *)emulated_self;
    struct warp *w = &now.warps[self->number / EMULATED_WARP];
    emulated_slots *slots = &w->slots[w->generation & 1];
    uint32_t all = 0xffffffffu >> (EMULATED_WARP - w->n_lanes), i;
    if ((mask & all) != all)
        emulated_fail("%s with mask 0x%08x: only whole warps are emulated", what, mask);
    if (w->ended)
        emulated_fail("%s, but %u lanes of the warp have ended", what, w->ended);
    if (w->arrived && w->what != what && strcmp(w->what, what) != 0)
        emulated_fail("%s, but other lanes of the warp are in %s", what, w->what);
    w->what = what;
    if (n_words)
        memcpy((*slots)[self->thread.lane], words, 4 * n_words);
    if (++w->arrived < w->n_lanes) {
        w->waiting |= 1u << self->thread.lane;
        suspend(self);
        return slots;
    }
    if (combine)
        combine(slots);
    now.n_yields = 0;
    w->arrived = 0;
    w->generation++;
    for (i = 0; i < EMULATED_WARP; i++) {
        uint32_t lane = now.turn & 1 ? EMULATED_WARP - 1 - i : i;
        if (w->waiting >> lane & 1)
            make_ready(self->number / EMULATED_WARP * EMULATED_WARP + lane);
    }
    w->waiting = 0;
    return slots;
}

/* ---- copies ---------------------------------------------------------------------------------- */

void emulated_copy(void *to, const void *from, unsigned int bytes)
{
    struct fiber *self = (struct fiber *)emulated_self;
    if (((uintptr_t)to | (uintptr_t)from) % bytes)
        emulated_fail("a copy of %u bytes from %p to %p: not aligned", bytes, from, to);
    if (self->n_copies == self->copies_room) {
        self->copies_room = self->copies_room ? 2 * self->copies_room : 16;
        self->copies = realloc(self->copies, self->copies_room * sizeof *self->copies);
        if (!self->copies)
            abort();
    }
    self->copies[self->n_copies++] = (struct copy){to, from, bytes, self->copy_group};
}

void emulated_copies_commit(void)
{
    ((struct fiber *)emulated_self)->copy_group++;
}

void emulated_copies_wait(unsigned int n_left)
{
    struct fiber *self = (struct fiber *)emulated_self;
    unsigned int i, kept = 0;
    for (i = 0; i < self->n_copies; i++) {
        struct copy *c = &self->copies[i];
        if (c->group + n_left < self->copy_group)
            memcpy(c->to, c->from, c->bytes);
        else
            self->copies[kept++] = *c;
    }
    self->n_copies = kept;
}

void emulated_waited(void)
{
    struct fiber *self = (struct fiber *)emulated_self;
    now.n_waited += !self->waited;
    self->waited = true;
}

/* ---- blocks ---------------------------------------------------------------------------------- */

/* The thread is done: whoever waited for it alone goes on. */
static void end_thread(struct fiber *self)
{
    struct warp *w = &now.warps[self->number / EMULATED_WARP];
    struct barrier *own = &now.blocks[self->thread.rank];
    now.n_yields = 0;
    w->ended++;
    if (w->arrived)
        emulated_fail("a lane has ended, but %u of its warp wait for it in %s", w->arrived,
                      w->what);
    now.n_alive--;
    if (--own->n_alive && own->arrived == own->n_alive)
        open_barrier(own);
}

/* What every fiber does for ever: one thread of a block, then another of the next block. */
static void fiber_main(void)
{
    arrived(NULL);
    for (;;) {
        struct fiber *self = (struct fiber *)emulated_self;
        now.launch->call(now.launch->arguments);
        end_thread(self);
        if (now.n_alive)
            suspend(self);
        else
            go(&self->context, &now.host);
    }
}

/* The whole mapping of a fiber's stack. */
#define STACK_ROOM (STACK_BYTES + 2 * PAGE)

static void new_fiber(unsigned int number)
{
    struct fiber *f = calloc(1, sizeof *f);
    /* A page more between stacks and a shift of the top, or all would meet in the same cache lines.
     */
    size_t room = STACK_ROOM, shift = (size_t)number * 832 % PAGE / 64 * 64;
    char *stack = mmap(NULL, room, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!f || stack == MAP_FAILED || mprotect(stack, PAGE, PROT_NONE) != 0) {
        fprintf(stderr, "emulated kernels: no memory for %u threads\n", number);
        abort();
    }
#ifdef WITH_ASAN
    __asan_unpoison_memory_region(stack + PAGE, room - PAGE); /* others had a stack here before */
#endif
    f->number = number;
    f->context.stack = stack + PAGE;
    f->context.stack_bytes = room - PAGE;
#ifdef __x86_64__
    void **top = (void **)(void *)(stack + room - 64 - shift);
    *--top = NULL; /* fiber_main's return address: it has none */
    *--top = (void *)fiber_main;
    top -= 6; /* the saved registers */
    f->context.sp = top;
#else
    getcontext(&f->context.u);
    f->context.u.uc_stack.ss_sp = stack + PAGE;
    f->context.u.uc_stack.ss_size = room - PAGE - shift;
    makecontext(&f->context.u, fiber_main, 0);
#endif
    now.fibers[number] = f;
    now.n_fibers = number + 1;
}

static void set_up_barrier(struct barrier *b, unsigned int first, unsigned int n)
{
    *b = (struct barrier){.first = first, .n = n, .n_alive = n};
}

/* One of the blocks: threads 0 .. n - 1 as the launch numbers them. */
static void set_up_block(unsigned int rank, struct emulated_index block, unsigned int n)
{
    const struct emulated_index *dim = &now.launch->block;
    unsigned int i, first = rank * n;
    memset(shared_of(rank), 0xff, now.launch->shared_bytes);
    set_up_barrier(&now.blocks[rank], first, n);
    for (i = 0; i < NAMED_MAX; i++)
        set_up_barrier(&now.named[rank][i], first, n);
    for (i = 0; i * EMULATED_WARP < n; i++) {
        struct warp *w = &now.warps[first / EMULATED_WARP + i];
        unsigned int left = n - i * EMULATED_WARP;
        w->n_lanes = left < EMULATED_WARP ? left : EMULATED_WARP;
        w->arrived = w->ended = w->generation = w->waiting = 0;
        if (left < EMULATED_WARP)
            memset(w->slots, 0xff, sizeof w->slots);
    }
    for (i = 0; i < n; i++) {
        struct fiber *f = now.fibers[first + i];
        f->thread.index =
            (struct emulated_index){i % dim->x, i / dim->x % dim->y, i / dim->x / dim->y};
        f->thread.block = (struct emulated_index){block.x + rank, block.y, block.z};
        f->thread.rank = rank;
        f->thread.shared = shared_of(rank);
        f->thread.lane = i % EMULATED_WARP;
        f->thread.warp = i / EMULATED_WARP;
        f->waited = false;
        f->n_copies = f->copy_group = 0;
        now.waiting[first + i] = NULL;
    }
}

/* The blocks that run together, the first of them that. */
static void run_blocks(struct emulated_index block)
{
    struct fiber *first;
    unsigned int n = now.n_threads / now.launch->together, i;
    bool backwards = ++now.turn * 2654435761u >> 31;
    for (i = 0; i < now.launch->together; i++)
        set_up_block(i, block, n);
    now.n_alive = now.n_threads;
    now.n_ready = now.n_yields = 0;
    for (i = 0; i < now.n_threads; i++)
        make_ready(backwards ? now.n_threads - 1 - i : i);
    first = now.fibers[now.ready[now.ready_first]];
    now.ready_first = (now.ready_first + 1) % THREADS_MAX;
    now.n_ready--;
    emulated_self = &first->thread;
    go(&now.host, &first->context);
    emulated_self = NULL;
}

void emulated_run(const struct emulated_launch *launch)
{
    const struct emulated_index grid = launch->grid;
    unsigned int x, y, z;
    now.launch = launch;
    now.n_waited = 0;
    now.n_threads = launch->block.x * launch->block.y * launch->block.z * launch->together;
    while (now.n_fibers < now.n_threads)
        new_fiber(now.n_fibers);
    emulated_grid_dim = grid;
    emulated_block_dim = launch->block;
    open_shared(launch->shared_bytes);
    for (z = 0; z < grid.z; z++) {
        for (y = 0; y < grid.y; y++) {
            for (x = 0; x < grid.x; x += launch->together)
                run_blocks((struct emulated_index){x, y, z});
        }
    }
    if (!now.n_waited)
        emulated_fail("no thread called cuda_wait()");
    now.launch = NULL;
}

/* Memory that is given back may be anybody's next, a library's that is loaded again: what the
 * sanitizer noted about it would be found there. */
static void forget(void *memory, size_t bytes)
{
#ifdef WITH_ASAN
    __asan_unpoison_memory_region(memory, bytes);
#else
    (void)memory;
    (void)bytes;
#endif
}

static __attribute__((destructor)) void clean_up(void)
{
    while (now.n_fibers) {
        struct fiber *f = now.fibers[--now.n_fibers];
        char *stack = (char *)(uintptr_t)f->context.stack - PAGE;
        forget(stack + PAGE, STACK_ROOM - PAGE);
        munmap(stack, STACK_ROOM);
        free(f->copies);
        free(f);
    }
    forget(shared_memory, sizeof shared_memory);
}
