/* A clock of day that can be set off by whole seconds while the program runs; loaded by LD_PRELOAD.

   CHAOS_CLOCK names a file that holds the seconds as a 64-bit number. Monotonic clocks, and so all
   waiting in Python 3.11 or later, are the real ones. Not libfaketime (0.9.10), under which
   time.sleep() fails and threads take fifty times as long to wake each other. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const int64_t none = 0;
static const volatile int64_t *offset = &none;

__attribute__((constructor)) static void find_offset(void)
{
    const char *path = getenv("CHAOS_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *shared = mmap(NULL, sizeof none, PROT_READ, MAP_SHARED, file, 0);
    if (shared != MAP_FAILED)
        offset = shared;
}

int clock_gettime(clockid_t id, struct timespec *t)
{
    int answer = syscall(SYS_clock_gettime, id, t);
    if (answer == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        t->tv_sec += *offset;
    return answer;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone)
{
    int answer = syscall(SYS_gettimeofday, t, zone);
    if (answer == 0)
        t->tv_sec += *offset;
    return answer;
}

time_t time(time_t *t)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (t)
        *t = now.tv_sec;
    return now.tv_sec;
}
