/* What the bench's C programs share: arguments, sockets, clocks, and a histogram of latencies.
 *
 * Arguments are key=value words. Every program has an alarm, so that none outlives a run that went wrong. Little is
 * checked politely here: a bench that meets anything unforeseen says so on stderr and ends with status 1.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define HEADER 4 /* u32, big-endian: the payload's length */

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...) {
    va_list words;
    va_start(words, format);
    vfprintf(stderr, format, words);
    va_end(words);
    fputc('\n', stderr);
    exit(1);
}

/* --- arguments --------------------------------------------------------------------------------------------------- */

static const char *text_argument(int argc, char **argv, const char *name, const char *otherwise) {
    size_t length = strlen(name);
    for (int i = 1; i < argc; i++)
        if (!strncmp(argv[i], name, length) && argv[i][length] == '=') return argv[i] + length + 1;
    return otherwise;
}

static double argument(int argc, char **argv, const char *name, double otherwise) {
    const char *text = text_argument(argc, argv, name, NULL);
    return text ? atof(text) : otherwise;
}

static char *file_argument(int argc, char **argv, const char *name, size_t *size) {
    const char *path = text_argument(argc, argv, name, NULL);
    if (!path) die("cannot go on without %s=FILE", name);
    FILE *file = fopen(path, "rb");
    if (!file) die("cannot read %s: %s", path, strerror(errno));
    char *data = malloc(1 << 20);
    *size = fread(data, 1, 1 << 20, file);
    fclose(file);
    return data;
}

/* --- clocks ------------------------------------------------------------------------------------------------------ */

static uint64_t read_clock(clockid_t clock) {
    struct timespec now;
    if (clock_gettime(clock, &now)) die("cannot read the clock: %s", strerror(errno));
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t now_ns(void) { return read_clock(CLOCK_MONOTONIC); }

/* The CPU time that every thread of process `pid` has used, user and system, in ns. */
static clockid_t cpu_clock(pid_t pid) {
    clockid_t clock;
    if (clock_getcpuclockid(pid, &clock)) die("cannot see the CPU time of process %d", (int)pid);
    return clock;
}

/* --- sockets ----------------------------------------------------------------------------------------------------- */

static void non_blocking(int fd) {
    int one = 1;
    if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK)) die("cannot make a socket non-blocking");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static int connect_to(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0) die("cannot open a socket: %s", strerror(errno));
    if (connect(fd, (struct sockaddr *)&address, sizeof address)) die("cannot connect: %s", strerror(errno));
    non_blocking(fd);
    return fd;
}

/* A listening socket on any free port of 127.0.0.1; the port is the first line of this program's output. */
static int listen_anywhere(void) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(fd, (struct sockaddr *)&address, size) || listen(fd, 4096)) die("cannot listen: %s", strerror(errno));
    getsockname(fd, (struct sockaddr *)&address, &size);
    non_blocking(fd);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

static void watch(int epoll, int operation, int fd, uint32_t events, void *what) {
    struct epoll_event event = {.events = events, .data.ptr = what};
    if (epoll_ctl(epoll, operation, fd, &event)) die("cannot watch a socket: %s", strerror(errno));
}

static uint32_t frame_length(const char *at) {
    uint32_t length;
    memcpy(&length, at, HEADER);
    return ntohl(length);
}

static void put_length(char *at, uint32_t length) {
    length = htonl(length);
    memcpy(at, &length, HEADER);
}

/* --- latencies --------------------------------------------------------------------------------------------------- */

/* Log-linear: 32 buckets an octave, so a value is known to about 3 %, whatever its size. */
#define PER_OCTAVE 32
static uint64_t histogram[64 * PER_OCTAVE], samples;

static inline void count_latency(uint64_t ns) {
    unsigned octave = 63 - (unsigned)__builtin_clzll(ns | PER_OCTAVE);
    histogram[(octave - 5) * PER_OCTAVE + (ns >> (octave - 5))]++;
    samples++;
}

/* The latency, in us, that the share `part` of all samples did not exceed. */
static double percentile(double part) {
    uint64_t wanted = (uint64_t)(part * (double)samples), seen = 0;
    for (unsigned i = 0; i < 64 * PER_OCTAVE; i++) {
        seen += histogram[i];
        if (seen > wanted) {
            unsigned shift = i < 2 * PER_OCTAVE ? 0 : i / PER_OCTAVE - 1;
            return ((double)((uint64_t)(i - shift * PER_OCTAVE) << shift) + (double)(1ull << shift) / 2) / 1000;
        }
    }
    return 0;
}
