/* Preloaded under a process, makes its k-th file operation below one folder fail.
 *
 * fault_arm(k, kind, sticky, folder): count the operations of that kind below `folder`; the k-th one fails, and with
 * `sticky` every one after it. fault_disarm(): stop; returns how many were counted. Kinds: see `enum`.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FAIL_EIO, FAIL_ENOSPC, FAIL_SHORT, FAIL_FSYNC, FAIL_RENAME, KILL, KILL_TORN };
enum { OP_OPEN, OP_WRITE, OP_SYNC, OP_RENAME, OP_NAME };

static int armed, kind, sticky;
static long at, seen;
static char root[PATH_MAX];

void fault_arm(long k, int which, int stick, const char *folder) {
    at = k;
    seen = 0;
    kind = which;
    sticky = stick;
    snprintf(root, sizeof root, "%s", folder);
    armed = 1;
}

long fault_disarm(void) {
    armed = 0;
    return seen;
}

static int below(const char *path) {
    char full[2 * PATH_MAX];
    if (path[0] != '/') {
        if (!getcwd(full, PATH_MAX)) return 0;
        strcat(full, "/");
        strncat(full, path, PATH_MAX - 1);
        path = full;
    }
    return strncmp(path, root, strlen(root)) == 0;
}

static int fd_below(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return below(path);
}

/* Whether this operation, which is known to be below the folder, must fail. */
static int due(int op) {
    if (kind == FAIL_SHORT && op != OP_WRITE) return 0;
    if (kind == FAIL_FSYNC && op != OP_SYNC) return 0;
    if (kind == FAIL_RENAME && op != OP_RENAME) return 0;
    if (kind == KILL_TORN && op != OP_WRITE) return 0;
    ++seen;
    int now = sticky ? seen >= at : seen == at;
    if (now && kind == KILL) kill(getpid(), SIGKILL);
    return now;
}

static int error(void) {
    errno = kind == FAIL_ENOSPC || kind == FAIL_SHORT ? ENOSPC : EIO;
    return -1;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static ssize_t torn(int fd, const void *data, size_t n, off_t offset, int positioned) {
    static ssize_t (*plain)(int, const void *, size_t);
    static ssize_t (*placed)(int, const void *, size_t, off_t);
    if (!plain) plain = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    if (!placed) placed = (ssize_t(*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite64");
    if (armed && fd_below(fd) && due(OP_WRITE)) {
        if (kind != FAIL_SHORT && kind != KILL_TORN) return error();
        if (kind == FAIL_SHORT && (n < 2 || seen > at)) return error();
        ssize_t some = positioned ? placed(fd, data, n / 2, offset) : plain(fd, data, n / 2);
        if (kind == KILL_TORN) kill(getpid(), SIGKILL);
        return some;
    }
    return positioned ? placed(fd, data, n, offset) : plain(fd, data, n);
}

ssize_t write(int fd, const void *data, size_t n) { return torn(fd, data, n, 0, 0); }
ssize_t pwrite(int fd, const void *data, size_t n, off_t offset) { return torn(fd, data, n, offset, 1); }
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t offset) { return torn(fd, data, n, offset, 1); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    if (armed && fd_below(fd) && due(OP_WRITE)) return error();
    return real(fd, parts, count);
}

static int opens(const char *path, int flags) {
    return armed && (flags & (O_CREAT | O_WRONLY | O_RDWR)) && below(path) && due(OP_OPEN);
}

#define MODE \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { \
        va_list more; \
        va_start(more, flags); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
    }

int open(const char *path, int flags, ...) {
    REAL(open);
    MODE
    return opens(path, flags) ? error() : real(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    REAL(open64);
    MODE
    return opens(path, flags) ? error() : real(path, flags, mode);
}

#define ON_FD(op, name, ...) \
    int name(__VA_ARGS__) { \
        REAL(name); \
        if (armed && fd_below(fd) && due(op)) return error(); \
        return real ARGS; \
    }
#define ARGS (fd)
ON_FD(OP_SYNC, fsync, int fd)
ON_FD(OP_SYNC, fdatasync, int fd)
#undef ARGS
#define ARGS (fd, size)
ON_FD(OP_NAME, ftruncate, int fd, off_t size)
ON_FD(OP_NAME, ftruncate64, int fd, off64_t size)
#undef ARGS

int rename(const char *from, const char *to) {
    REAL(rename);
    if (armed && below(to) && due(OP_RENAME)) return error();
    return real(from, to);
}

int renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags) {
    REAL(renameat2);
    if (armed && below(to) && due(OP_RENAME)) return error();
    return real(from_fd, from, to_fd, to, flags);
}

int unlink(const char *path) {
    REAL(unlink);
    if (armed && below(path) && due(OP_NAME)) return error();
    return real(path);
}

int unlinkat(int fd, const char *path, int flags) {
    REAL(unlinkat);
    if (armed && (fd == AT_FDCWD ? below(path) : fd_below(fd)) && due(OP_NAME)) return error();
    return real(fd, path, flags);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    if (armed && below(path) && due(OP_NAME)) return error();
    return real(path, mode);
}

int rmdir(const char *path) {
    REAL(rmdir);
    if (armed && below(path) && due(OP_NAME)) return error();
    return real(path);
}
