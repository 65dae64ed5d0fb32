/* sandbox.c: see sandbox.h.
 *
 * The filter is a list of what is allowed, found by running every integration and hostile test
 * under a tracer, each call beside its use. Everything else fails:
 *
 *   kills the process   calls that no part of the daemon or its libraries can come to by mistake:
 *                       starting programs, tracing, mounting, loading modules, changing identity.
 *                       Whoever makes one has taken the process over, and what it holds is worth
 *                       more than its uptime: systemd starts a new one.
 *   EPERM               all the rest, since a library may try what it can do without. The kernel's
 *                       audit log tells of these where it is set to (seccomp/actions_logged).
 *   ENOSYS              clone3, whose flags a filter cannot see: the C library then takes clone,
 *                       of which only threads are allowed.
 *
 * Arguments that are pointers cannot be checked; which files may be opened is the file system's and
 * the unit's affair, and sandbox_open_beneath()'s.
 *
 * Not dumpable: the memory of a system's daemon holds the prompts of all users, so it writes no
 * core, and no other process of its user can trace it. A user's own daemon holds his own data and
 * stays open to his debugger.
 *
 * Under AddressSanitizer, whose leak check traces the process, its needs are added and the process
 * stays dumpable: such a build is for tests. */
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <pwd.h>
#include <sched.h>
#include <seccomp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#endif

#define CACHESTAT 451 /* the same on every architecture; newer than the library's table */

/* ---- the tables ------------------------------------------------------------------------------ */

#define ANYTIME 0u
#define ON_GPU  1u

/* The calls of a row end with a negative number that is no call. */
#define END_OF_CALLS INT_MIN

struct allowed {
    unsigned when;
    const char *why;
    int calls[24];
};

#define CALL(name) SCMP_SYS(name)

static const struct allowed allowed[] = {
    {ANYTIME,
     "memory: the allocator's and the backend's",
     {CALL(munmap), CALL(mremap), CALL(brk), CALL(madvise), CALL(mbind), CALL(get_mempolicy),
      CALL(mincore), CALL(mlock), CALL(munlock), END_OF_CALLS}},
    {ANYTIME,
     "threads: start, end, names, places, priorities",
     {CALL(futex), CALL(set_robust_list), CALL(rseq), CALL(exit), CALL(exit_group),
      CALL(sched_yield), CALL(sched_getaffinity), CALL(sched_setaffinity), CALL(sched_getparam),
      CALL(sched_getscheduler), CALL(sched_setscheduler), CALL(setpriority), CALL(getpriority),
      CALL(getcpu), CALL(membarrier), CALL(gettid), CALL(restart_syscall), END_OF_CALLS}},
    {ANYTIME,
     "signals: masks and the way back from a handler",
     {CALL(rt_sigaction), CALL(rt_sigprocmask), CALL(rt_sigreturn), CALL(rt_sigpending),
      CALL(rt_sigtimedwait), CALL(sigaltstack), CALL(signalfd4), END_OF_CALLS}},
    {ANYTIME,
     "time",
     {CALL(clock_gettime), CALL(clock_getres), CALL(clock_nanosleep), CALL(nanosleep),
      CALL(gettimeofday), CALL(time), CALL(timerfd_create), CALL(timerfd_settime), END_OF_CALLS}},
    {ANYTIME,
     "the event loops, and the stream's ring; what a ring may do is io/ring.h's",
     {CALL(io_uring_setup), CALL(io_uring_enter), CALL(io_uring_register), CALL(epoll_create1),
      CALL(epoll_ctl), CALL(epoll_wait), CALL(epoll_pwait), CALL(epoll_pwait2), CALL(poll),
      CALL(ppoll), CALL(eventfd2), CALL(pipe2), END_OF_CALLS}},
    {ANYTIME,
     "connections: handshakes, descriptors, refusals, notices to the service manager",
     {CALL(accept), CALL(accept4), CALL(connect), CALL(bind), CALL(listen), CALL(recvmsg),
      CALL(recvfrom), CALL(sendmsg), CALL(sendto), CALL(getsockopt), CALL(setsockopt),
      CALL(getsockname), CALL(getpeername), CALL(shutdown), END_OF_CALLS}},
    {ANYTIME,
     "files: models, the configuration, /proc and /sys, the swap file, logs",
     {CALL(read),    CALL(readv),    CALL(pread64), CALL(preadv),      CALL(preadv2), CALL(write),
      CALL(writev),  CALL(pwrite64), CALL(pwritev), CALL(pwritev2),    CALL(lseek),   CALL(openat),
      CALL(openat2), CALL(open),     CALL(close),   CALL(close_range), CALL(dup),     CALL(dup2),
      CALL(dup3),    CALL(fcntl),    CALL(flock),   CALL(ioprio_set),  END_OF_CALLS}},
    {ANYTIME,
     "what files are, and folders",
     {CALL(fstat), CALL(newfstatat), CALL(stat), CALL(lstat), CALL(statx), CALL(fstatfs),
      CALL(statfs), CALL(access), CALL(faccessat), CALL(faccessat2), CALL(readlink),
      CALL(readlinkat), CALL(getdents64), CALL(getcwd), CALL(fadvise64), CACHESTAT, END_OF_CALLS}},
    {ANYTIME,
     "files of its own: rings, status page, sockets, swap",
     {CALL(memfd_create), CALL(ftruncate), CALL(fallocate), CALL(fsync), CALL(fdatasync),
      CALL(unlink), CALL(unlinkat), CALL(rename), CALL(renameat), CALL(renameat2), CALL(umask),
      CALL(fchmod), CALL(fchown), CALL(chmod), CALL(fchmodat), CALL(mkdir), CALL(mkdirat),
      END_OF_CALLS}},
    {ANYTIME,
     "who and where it is",
     {CALL(getpid), CALL(getppid), CALL(getuid), CALL(geteuid), CALL(getgid), CALL(getegid),
      CALL(getgroups), CALL(getresuid), CALL(getresgid), CALL(uname), CALL(sysinfo),
      CALL(getrusage), CALL(getrandom), CALL(times), END_OF_CALLS}},
    {ON_GPU,
     "the GPU's driver: its devices, and code that it compiles",
     {CALL(ioctl), CALL(mmap), CALL(mprotect), CALL(set_mempolicy), CALL(mlock2), CALL(pipe),
      CALL(socketpair), END_OF_CALLS}},
};

/* Nobody does these by mistake. */
static const int deadly[] = {
    CALL(execve),
    CALL(execveat),
    CALL(fork),
    CALL(vfork),
    CALL(ptrace),
    CALL(process_vm_readv),
    CALL(process_vm_writev),
    CALL(kcmp),
    CALL(pidfd_getfd),
    CALL(mount),
    CALL(umount2),
    CALL(pivot_root),
    CALL(chroot),
    CALL(move_mount),
    CALL(open_tree),
    CALL(fsopen),
    CALL(fsmount),
    CALL(setns),
    CALL(unshare),
    CALL(open_by_handle_at),
    CALL(init_module),
    CALL(finit_module),
    CALL(delete_module),
    CALL(kexec_load),
    CALL(kexec_file_load),
    CALL(bpf),
    CALL(perf_event_open),
    CALL(userfaultfd),
    CALL(add_key),
    CALL(request_key),
    CALL(keyctl),
    CALL(reboot),
    CALL(swapon),
    CALL(swapoff),
    CALL(acct),
    CALL(quotactl),
    CALL(settimeofday),
    CALL(clock_settime),
    CALL(clock_adjtime),
    CALL(adjtimex),
    CALL(sethostname),
    CALL(setdomainname),
    CALL(iopl),
    CALL(ioperm),
    CALL(modify_ldt),
    CALL(personality),
    CALL(capset),
    CALL(setuid),
    CALL(setgid),
    CALL(setreuid),
    CALL(setregid),
    CALL(setresuid),
    CALL(setresgid),
    CALL(setfsuid),
    CALL(setfsgid),
    CALL(setgroups),
};

/* What the leak check of AddressSanitizer does as the process ends. */
static const int sanitizer[] = {
    CALL(ptrace),    CALL(prctl),  CALL(clone),    CALL(wait4),
    CALL(kill),      CALL(tgkill), CALL(mmap),     CALL(mprotect),
    CALL(prlimit64), CALL(ioctl),  CALL(getdents), CALL(process_vm_readv),
};

/* ---- the filter ------------------------------------------------------------------------------ */

static bool is_sanitizers(int call)
{
    for (size_t i = 0; SANITIZED && i < sizeof sanitizer / sizeof sanitizer[0]; i++)
        if (sanitizer[i] == call)
            return true;
    return false;
}

static bool is_gpus(int call)
{
    for (size_t i = 0; i < sizeof allowed / sizeof allowed[0]; i++)
        for (const int *at = allowed[i].calls; *at != END_OF_CALLS; at++)
            if (allowed[i].when == ON_GPU && *at == call)
                return true;
    return false;
}

/* Calls that depend on an argument, unless they are allowed whatever it is. */
static int add_conditional(scmp_filter_ctx f, bool gpu)
{
#define WORD 0xffffffffu /* arguments that are int: the rest of the register says nothing */
    const struct {
        uint32_t action;
        int call;
        struct scmp_arg_cmp when; /* which argument, how, mask, value */
    } rows[] = {
        /* Nothing becomes executable. */
        {SCMP_ACT_ALLOW, CALL(mmap), {2, SCMP_CMP_MASKED_EQ, PROT_EXEC, 0}},
        {SCMP_ACT_ALLOW, CALL(mprotect), {2, SCMP_CMP_MASKED_EQ, PROT_EXEC, 0}},
        {SCMP_ACT_ALLOW, CALL(clone), {0, SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD}},
        {SCMP_ACT_KILL_PROCESS, CALL(clone), {0, SCMP_CMP_MASKED_EQ, CLONE_THREAD, 0}},
        /* To the service manager, and to look up a user's name. */
        {SCMP_ACT_ALLOW, CALL(socket), {0, SCMP_CMP_MASKED_EQ, WORD, AF_UNIX}},
        {SCMP_ACT_ALLOW, CALL(prctl), {0, SCMP_CMP_MASKED_EQ, WORD, PR_SET_NAME}},
        {SCMP_ACT_ALLOW, CALL(prctl), {0, SCMP_CMP_MASKED_EQ, WORD, PR_GET_NAME}},
        {SCMP_ACT_ALLOW, CALL(prctl), {0, SCMP_CMP_MASKED_EQ, WORD, PR_GET_DUMPABLE}},
        /* The allocator names its memory. */
        {SCMP_ACT_ALLOW, CALL(prctl), {0, SCMP_CMP_MASKED_EQ, WORD, PR_SET_VMA}},
        /* Is it a terminal? How much is there to read? */
        {SCMP_ACT_ALLOW, CALL(ioctl), {1, SCMP_CMP_MASKED_EQ, WORD, TCGETS}},
        {SCMP_ACT_ALLOW, CALL(ioctl), {1, SCMP_CMP_MASKED_EQ, WORD, FIONREAD}},
        {SCMP_ACT_ALLOW, CALL(ioctl), {1, SCMP_CMP_MASKED_EQ, WORD, FIONBIO}},
        /* Limits may be read. */
        {SCMP_ACT_ALLOW, CALL(prlimit64), {2, SCMP_CMP_EQ, 0, 0}},
        /* Is a process there? And abort(). */
        {SCMP_ACT_ALLOW, CALL(kill), {1, SCMP_CMP_MASKED_EQ, WORD, 0}},
        {SCMP_ACT_ALLOW, CALL(tgkill), {0, SCMP_CMP_MASKED_EQ, WORD, (uint32_t)getpid()}},
    };
    int r = 0;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0] && r == 0; i++)
        if (!is_sanitizers(rows[i].call) && !(gpu && is_gpus(rows[i].call)))
            r = seccomp_rule_add(f, rows[i].action, rows[i].call, 1, rows[i].when);
    return r;
}

static int add_rules(scmp_filter_ctx f, bool gpu)
{
    int r = 0;
    for (size_t i = 0; i < sizeof allowed / sizeof allowed[0]; i++)
        for (const int *at = allowed[i].calls; *at != END_OF_CALLS && r == 0; at++)
            if ((allowed[i].when == ANYTIME || gpu) && !is_sanitizers(*at))
                r = seccomp_rule_add(f, SCMP_ACT_ALLOW, *at, 0);
    for (size_t i = 0; i < sizeof deadly / sizeof deadly[0] && r == 0; i++)
        if (!is_sanitizers(deadly[i]))
            r = seccomp_rule_add(f, SCMP_ACT_KILL_PROCESS, deadly[i], 0);
    for (size_t i = 0; i < sizeof sanitizer / sizeof sanitizer[0] && SANITIZED && r == 0; i++)
        r = seccomp_rule_add(f, SCMP_ACT_ALLOW, sanitizer[i], 0);
    if (r == 0)
        r = seccomp_rule_add(f, SCMP_ACT_ERRNO(ENOSYS), CALL(clone3), 0);
    return r < 0 ? r : add_conditional(f, gpu);
}

static int load_filter(bool gpu)
{
    scmp_filter_ctx f = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    if (f == NULL)
        return -ENOMEM;
    int r = seccomp_attr_set(f, SCMP_FLTATR_CTL_TSYNC, 1); /* all threads, those that run too */
    if (r == 0)
        r = seccomp_attr_set(f, SCMP_FLTATR_CTL_OPTIMIZE, 2); /* a tree, not a list */
    if (r == 0)
        r = seccomp_attr_set(f, SCMP_FLTATR_CTL_LOG, 1);
    if (r == 0)
        r = add_rules(f, gpu);
    if (r == 0)
        r = seccomp_load(f);
    seccomp_release(f);
    return r;
}

/* ---- the whole ------------------------------------------------------------------------------- */

/* root, and the users that services get (systemd's and Debian's ranges). */
static bool is_system_user(uid_t uid)
{
    return uid < 1000 || (uid >= 61184 && uid <= 65519);
}

int sandbox_enter(bool gpu, char ret_note[SANDBOX_NOTE_MAX])
{
    /* A name that nobody has: the C library loads its modules for names now, while it still can. */
    (void)getpwnam("inferd-nobody-has-this-name");
    if (!SANITIZED && is_system_user(geteuid()))
        prctl(PR_SET_DUMPABLE, 0);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) {
        int error = errno;
        snprintf(ret_note, SANDBOX_NOTE_MAX,
                 "privileges cannot be given up for good (no_new_privs: %s); going on without",
                 strerror(error));
        return -error;
    }
    int r = load_filter(gpu);
    if (r < 0)
        snprintf(ret_note, SANDBOX_NOTE_MAX,
                 "this system or container does not allow a filter of system calls (seccomp: %s); "
                 "going on without",
                 strerror(-r));
    return r;
}

/* ---- files ----------------------------------------------------------------------------------- */

int sandbox_check_file(int fd)
{
    struct stat st;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fstat(fd, &st) < 0)
        return -errno;
    if (S_ISDIR(st.st_mode))
        return -EISDIR;
    if (!S_ISREG(st.st_mode))
        return -EINVAL;
    if ((flags & O_PATH) != 0 || (flags & O_ACCMODE) == O_WRONLY)
        return -EACCES;
    return 0;
}

/* Waits for nothing: a pipe would, for its writer. */
#define OPEN_FLAGS (O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY)

/* For kernels before 5.6, component by component. */
static int open_each(int directory, const char *path)
{
    int at = directory;
    for (;;) {
        char name[NAME_MAX + 1];
        size_t n = strcspn(path, "/");
        const char *rest = path + n + strspn(path + n, "/");
        bool last = *rest == '\0' && path[n] == '\0';
        int fd = -ENAMETOOLONG;
        if (n == 0 || (n == 2 && memcmp(path, "..", 2) == 0)) {
            fd = n == 0 && *path != '/' ? -ENOENT : -EXDEV;
        } else if (n < sizeof name) {
            memcpy(name, path, n);
            name[n] = '\0';
            fd = openat(at, name, last ? OPEN_FLAGS : OPEN_FLAGS | O_DIRECTORY | O_PATH);
            fd = fd < 0 ? -errno : fd;
            struct stat st; /* of a link, O_DIRECTORY says that it is no folder */
            if (fd == -ENOTDIR && fstatat(at, name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
                S_ISLNK(st.st_mode))
                fd = -ELOOP;
        }
        if (at != directory)
            close(at);
        if (fd < 0 || last)
            return fd;
        at = fd;
        path = *rest != '\0' ? rest : ".";
    }
}

int sandbox_open_beneath(int directory, const char *path)
{
    struct open_how how = {.flags = OPEN_FLAGS,
                           .resolve =
                               RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
    int fd = (int)syscall(SYS_openat2, directory, path, &how, sizeof how);
    if (fd < 0)
        fd = -errno;
    /* EPERM: a container's filter that is older than the call. */
    if (fd == -ENOSYS || fd == -EPERM)
        fd = open_each(directory, path);
    if (fd < 0)
        return fd;
    int r = sandbox_check_file(fd);
    if (r < 0) {
        close(fd);
        return r;
    }
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    return fd;
}
