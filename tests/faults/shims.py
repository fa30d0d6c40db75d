"""Libraries that are loaded before libc and make its calls fail or lie, in one of orun's processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DISK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* ORUN_SHIM=FUNCTION:K:ERRNO makes the K-th call of a function on a file of the journal database fail; with
   errno 0 half of it is written. Only in the runtime: its children inherit the library too. */
static char wanted[16];
static int countdown, how, armed;

__attribute__((constructor)) static void arm(void) {
    char line[4096] = {0};
    const char *plan = getenv("ORUN_SHIM");
    FILE *file = fopen("/proc/self/cmdline", "r");
    if (!plan || !file) return;
    size_t size = fread(line, 1, sizeof line - 1, file);
    fclose(file);
    for (size_t i = 0; i < size; i++) if (!line[i]) line[i] = ' ';
    armed = strstr(line, " orun.runtime ") && sscanf(plan, "%15[a-z]:%d:%d", wanted, &countdown, &how) == 3;
}

static int due(const char *function, int fd) {
    char link[64], path[4096];
    if (!armed || strcmp(function, wanted)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size <= 0) return 0;
    path[size] = 0;
    if (!strstr(path, "/journal/data.mdb") || --countdown) return 0;
    fprintf(stderr, "shim: %s fails\\n", function);
    return 1;
}

int fdatasync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
    if (due("fdatasync", fd)) { errno = how; return -1; }
    return real(fd);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) {
    static ssize_t (*real)(int, const void *, size_t, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwrite64");
    if (due("pwrite", fd)) {
        if (how == 0) return real(fd, data, size / 2, offset);
        errno = how;
        return -1;
    }
    return real(fd, data, size, offset);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return pwrite64(fd, data, size, offset); }

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t offset) {
    static ssize_t (*real)(int, const struct iovec *, int, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwritev64");
    if (due("pwrite", fd)) {
        if (how == 0) return real(fd, parts, count > 1 ? count - 1 : 1, offset) - (count > 1 ? 0 : 1);
        errno = how;
        return -1;
    }
    return real(fd, parts, count, offset);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    return pwritev64(fd, parts, count, offset);
}
"""

CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* The file that ORUN_SHIM_CLOCK names holds the seconds by which the wall clock is wrong just now. */
static long offset(void) {
    static int fd = -2;
    char text[32] = {0};
    if (fd == -2) {
        const char *path = getenv("ORUN_SHIM_CLOCK");
        fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        if (fd >= 0 && fd < 500) {
            int high = fcntl(fd, F_DUPFD_CLOEXEC, 500);
            close(fd);
            fd = high;
        }
    }
    if (fd < 0 || pread(fd, text, sizeof text - 1, 0) <= 0) return 0;
    return atol(text);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (result == 0 && clock == CLOCK_REALTIME) now->tv_sec += offset();
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *where) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (where) *where = exact.tv_sec;
    return exact.tv_sec;
}
"""


def build(source: str, folder: Path) -> Path:
    """Compile the library into a folder."""
    file, library = folder / "shim.c", folder / "shim.so"
    file.write_text(source)
    command = [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(file)]
    subprocess.run(command, check=True, capture_output=True)
    return library
