/* threads.c: runs the blocks of a kernel on the processor, one after the other.
 *
 * Owns a pool of fibers, one per thread of a block, each with a stack of its own that stays for the
 * next block and the next kernel. A fiber runs until it waits (a barrier, an exchange between
 * lanes) or ends, then switches to the next one that can go on; when none can, the kernel hangs,
 * which is said with its name. The order in which threads are let go changes with every barrier,
 * from first to last or from last to first, by a fixed rule: what a kernel forgot to wait for, one
 * of the two shows.
 *
 * One launch at a time; the caller holds a lock. Nothing here is fast in the sense of the real
 * thing: a switch takes some 10 ns.
 *
 * Limits: 1024 threads a block, 64 KiB of stack a thread (256 under AddressSanitizer) with an
 * unmapped page below. */
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

#define THREADS_MAX 1024u
#define PAGE        ((size_t)4096)

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

struct barrier {
    unsigned int arrived, generation;
    unsigned int yes[2], threads[2];
    uint8_t waiting[THREADS_MAX];
};

static struct {
    const struct emulated_launch *launch;
    struct fiber *fibers[THREADS_MAX];
    struct warp warps[THREADS_MAX / EMULATED_WARP];
    struct barrier barrier;
    struct context host;
    unsigned int n_threads, n_alive, n_fibers;
    unsigned int ready[THREADS_MAX], ready_first, n_ready; /* a ring */
    unsigned int turn;                                     /* changes the order of threads */
    unsigned int n_waited;
    bool from_host; /* the switch under way left the host's stack, whose place is not known yet */
} now;

struct emulated_thread *emulated_self;
struct emulated_index emulated_block, emulated_block_dim, emulated_grid_dim;
unsigned char *emulated_shared;

void emulated_fail(const char *format, ...)
{
    const char *text = now.launch ? now.launch->text : "?";
    int depth = 0, end = 0;
    va_list list;
    for (; text[end] && (text[end] != ',' || depth); end++)
        depth += text[end] == '<' || text[end] == '('   ? 1
                 : text[end] == '>' || text[end] == ')' ? -1
                                                        : 0;
    fprintf(stderr, "emulated kernel %.*s (%s:%d), block %u,%u,%u of %u,%u,%u", end, text,
            now.launch ? now.launch->file : "?", now.launch ? now.launch->line : 0,
            emulated_block.x, emulated_block.y, emulated_block.z, emulated_grid_dim.x,
            emulated_grid_dim.y, emulated_grid_dim.z);
    if (emulated_self)
        fprintf(stderr, ", thread %u,%u,%u", emulated_self->index.x, emulated_self->index.y,
                emulated_self->index.z);
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
        at_barrier += now.barrier.waiting[i];
    for (i = 0; i * EMULATED_WARP < now.n_threads; i++) {
        in_exchange += now.warps[i].arrived;
        if (now.warps[i].arrived)
            what = now.warps[i].what;
    }
    emulated_self = NULL;
    emulated_fail("nobody can go on: of %u threads %u have ended, %u wait at __syncthreads, %u "
                  "in %s for lanes that do not come",
                  now.n_threads, now.n_threads - now.n_alive, at_barrier, in_exchange,
                  in_exchange ? what : "a shuffle");
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
static void open_barrier(void)
{
    struct barrier *b = &now.barrier;
    unsigned int n = now.n_threads, i;
    bool backwards = ++now.turn * 2654435761u >> 31;
    b->threads[b->generation & 1] = now.n_alive;
    b->generation++;
    b->arrived = 0;
    b->yes[b->generation & 1] = 0;
    for (i = 0; i < n; i++) {
        unsigned int thread = backwards ? n - 1 - i : i;
        if (b->waiting[thread]) {
            b->waiting[thread] = 0;
            make_ready(thread);
        }
    }
}

unsigned int emulated_barrier(int predicate, unsigned int *ret_threads)
{
    struct fiber *self = (struct fiber *)emulated_self;
    struct barrier *b = &now.barrier;
    unsigned int parity = b->generation & 1;
    b->yes[parity] += predicate != 0;
    b->waiting[self->number] = 1;
    if (++b->arrived == now.n_alive)
        open_barrier();
    suspend(self);
    if (ret_threads)
        *ret_threads = b->threads[parity];
    return b->yes[parity];
}

/* ---- lanes of a warp ------------------------------------------------------------------------- */

emulated_slots *emulated_exchange(const char *what, uint32_t mask, const void *words,
                                  unsigned int n_words, emulated_combine combine)
{
    struct fiber *self = (struct fiber *)emulated_self;
    struct warp *w = &now.warps[self->thread.warp];
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
    w->arrived = 0;
    w->generation++;
    for (i = 0; i < EMULATED_WARP; i++) {
        uint32_t lane = now.turn & 1 ? EMULATED_WARP - 1 - i : i;
        if (w->waiting >> lane & 1)
            make_ready(self->thread.warp * EMULATED_WARP + lane);
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
    struct warp *w = &now.warps[self->thread.warp];
    w->ended++;
    if (w->arrived)
        emulated_fail("a lane has ended, but %u of its warp wait for it in %s", w->arrived,
                      w->what);
    now.n_alive--;
    if (now.n_alive && now.barrier.arrived == now.n_alive)
        open_barrier();
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

/* Threads 0 .. n - 1 as the launch numbers them, all ready. */
static void set_up_block(void)
{
    const struct emulated_index *dim = &now.launch->block;
    unsigned int i;
    bool backwards = ++now.turn * 2654435761u >> 31;
    memset(emulated_shared, 0xff, now.launch->shared_bytes);
    memset(&now.barrier, 0, sizeof now.barrier);
    now.n_alive = now.n_threads;
    now.n_ready = 0;
    for (i = 0; i * EMULATED_WARP < now.n_threads; i++) {
        struct warp *w = &now.warps[i];
        unsigned int left = now.n_threads - i * EMULATED_WARP;
        w->n_lanes = left < EMULATED_WARP ? left : EMULATED_WARP;
        w->arrived = w->ended = w->generation = w->waiting = 0;
        if (left < EMULATED_WARP)
            memset(w->slots, 0xff, sizeof w->slots);
    }
    for (i = 0; i < now.n_threads; i++) {
        struct fiber *f = now.fibers[i];
        f->thread.index =
            (struct emulated_index){i % dim->x, i / dim->x % dim->y, i / dim->x / dim->y};
        f->thread.lane = i % EMULATED_WARP;
        f->thread.warp = i / EMULATED_WARP;
        f->waited = false;
        f->n_copies = f->copy_group = 0;
        make_ready(backwards ? now.n_threads - 1 - i : i);
    }
}

static void run_block(void)
{
    struct fiber *first;
    set_up_block();
    first = now.fibers[now.ready[now.ready_first]];
    now.ready_first = (now.ready_first + 1) % THREADS_MAX;
    now.n_ready--;
    emulated_self = &first->thread;
    go(&now.host, &first->context);
    emulated_self = NULL;
}

/* As much shared memory as was asked for; the sanitizer knows where it ends. */
static void open_shared(size_t bytes)
{
    static _Alignas(128) unsigned char memory[EMULATED_SHARED_MAX];
#ifdef WITH_ASAN
    __asan_unpoison_memory_region(memory, bytes);
    __asan_poison_memory_region(memory + bytes, sizeof memory - bytes);
#endif
    emulated_shared = memory;
}

void emulated_run(const struct emulated_launch *launch)
{
    const struct emulated_index grid = launch->grid;
    unsigned int x, y, z;
    now.launch = launch;
    now.n_waited = 0;
    now.n_threads = launch->block.x * launch->block.y * launch->block.z;
    while (now.n_fibers < now.n_threads)
        new_fiber(now.n_fibers);
    emulated_grid_dim = grid;
    emulated_block_dim = launch->block;
    open_shared(launch->shared_bytes);
    for (z = 0; z < grid.z; z++) {
        for (y = 0; y < grid.y; y++) {
            for (x = 0; x < grid.x; x++) {
                emulated_block = (struct emulated_index){x, y, z};
                run_block();
            }
        }
    }
    emulated_shared = NULL;
    if (!now.n_waited)
        emulated_fail("no thread called cuda_wait()");
    now.launch = NULL;
}

static __attribute__((destructor)) void clean_up(void)
{
    while (now.n_fibers) {
        struct fiber *f = now.fibers[--now.n_fibers];
        munmap((char *)(uintptr_t)f->context.stack - PAGE, STACK_ROOM);
        free(f->copies);
        free(f);
    }
}
