// A library to be preloaded: makes the N-th write, fsync, rename or truncation below FAULT_DIR fail, or the process die there.
//   FAULT_DIR    calls on files in this directory are counted
//   FAULT_AT     which of them meets the fault, from 1; 0: none
//   FAULT_MODE   eio, enospc: the call fails so; kill: the process is killed instead of the call; torn: it is killed after
//                half of what a write was given
//   FAULT_LOG    each counted call becomes a line of this file
//   FAULT_READ   reads of this very file fail with EIO from the FAULT_AT-th on; nothing else is counted then
// Used by scripts/kill-campaign.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static atomic_long calls;

static int below(const char *path) {
    const char *dir = getenv("FAULT_DIR");
    return dir && strncmp(path, dir, strlen(dir)) == 0;
}

static int fd_below(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return below(path);
}

// Counts a call; whether it is to fail, with errno set. A kill does not return.
static int fails(const char *what, int fd, const void *bytes, size_t length) {
    long call = atomic_fetch_add(&calls, 1) + 1;
    const char *log = getenv("FAULT_LOG"), *at = getenv("FAULT_AT"), *mode = getenv("FAULT_MODE");
    if (log) {
        int file = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0600);
        char line[64];
        int n = snprintf(line, sizeof line, "%ld %s\n", call, what);
        syscall(SYS_write, file, line, n);
        syscall(SYS_close, file);
    }
    if (!at || atol(at) != call || !mode) return 0;
    if (strcmp(mode, "torn") == 0 && bytes) syscall(SYS_write, fd, bytes, length / 2);
    if (strcmp(mode, "torn") == 0 || strcmp(mode, "kill") == 0) {
        syscall(SYS_kill, getpid(), SIGKILL);
        for (;;) pause();
    }
    errno = strcmp(mode, "enospc") == 0 ? ENOSPC : EIO;
    return 1;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *bytes, size_t length) {
    REAL(write);
    if (fd > 2 && fd_below(fd) && fails("write", fd, bytes, length)) return -1;
    return real(fd, bytes, length);
}

ssize_t read(int fd, void *bytes, size_t length) {
    REAL(read);
    static atomic_long reads;
    const char *file = getenv("FAULT_READ"), *at = getenv("FAULT_AT");
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = file ? readlink(link, path, sizeof path - 1) : -1;
    if (n > 0) {
        path[n] = 0;
        if (strcmp(path, file) == 0 && at && atomic_fetch_add(&reads, 1) + 1 >= atol(at)) {
            errno = EIO;
            return -1;
        }
    }
    return real(fd, bytes, length);
}

int fsync(int fd) {
    REAL(fsync);
    if (fd_below(fd) && fails("fsync", fd, 0, 0)) return -1;
    return real(fd);
}

int fdatasync(int fd) {
    REAL(fdatasync);
    if (fd_below(fd) && fails("fdatasync", fd, 0, 0)) return -1;
    return real(fd);
}

int ftruncate64(int fd, off64_t length) {
    REAL(ftruncate64);
    if (fd_below(fd) && fails("truncate", fd, 0, 0)) return -1;
    return real(fd, length);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    if (below(to) && fails("rename", -1, 0, 0)) return -1;
    return real(from, to);
}

int msync(void *at, size_t length, int flags) {
    REAL(msync);
    if (fails("msync", -1, 0, 0)) return -1;
    return real(at, length, flags);
}
