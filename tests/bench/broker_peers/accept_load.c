/* The load of a door: connect, upgrade, say goodbye, and again.
 *
 *   accept_load port=P pid=PID path=/ together=16 warm=200 count=2000
 *
 * Each connection sends the request of a WebSocket upgrade, checks the answer, sends a close frame, waits for the
 * server's, and goes. `together` of them are under way at a time. Prints JSON: connections counted after the first `warm`,
 * CPU of process PID meanwhile (ns), wall (ns), and the time from connect() to the upgrade, p50 and p99 (us).
 */

#include "websocket.h"

struct visit {
    int fd, upgraded;
    char accept[29];
    uint64_t began;
    char data[4096];
    size_t have;
};

static int port, epoll;
static const char *path;
static uint64_t done;

static void visit(struct visit *v) {
    char request[1024];
    v->fd = connect_to(port);
    v->began = now_ns();
    v->upgraded = 0, v->have = 0;
    size_t length = request_of(request, sizeof request, port, path, v->accept);
    if (send(v->fd, request, length, MSG_NOSIGNAL) != (ssize_t)length) die("cannot send a request");
    watch(epoll, EPOLL_CTL_ADD, v->fd, EPOLLIN, v);
}

/* Whether the visit is over. */
static int receive(struct visit *v) {
    ssize_t got = recv(v->fd, v->data + v->have, sizeof v->data - v->have, 0);
    if (got < 0 && errno == EAGAIN) return 0;
    if (got <= 0) die("the server ended a connection without a close frame");
    v->have += (size_t)got;
    size_t used = 0;
    if (!v->upgraded) {
        used = head_of(v->data, v->have, v->accept);
        if (!used) return 0;
        v->upgraded = 1;
        count_latency(now_ns() - v->began);
        char goodbye[16];
        size_t length = put_masked(goodbye, 8, "\x03\xE8", 2);
        if (send(v->fd, goodbye, length, MSG_NOSIGNAL) != (ssize_t)length) die("cannot say goodbye");
    }
    for (size_t body, whole; (whole = frame_of(v->data + used, v->have - used, &body)) && used + whole <= v->have;
         used += whole)
        if ((v->data[used] & 0x0F) == 8) return 1;
    v->have -= used;
    memmove(v->data, v->data + used, v->have);
    return 0;
}

int main(int argc, char **argv) {
    port = (int)argument(argc, argv, "port", 0);
    path = text_argument(argc, argv, "path", "/");
    unsigned together = (unsigned)argument(argc, argv, "together", 16);
    uint64_t warm = (uint64_t)argument(argc, argv, "warm", 200), count = (uint64_t)argument(argc, argv, "count", 2000);
    clockid_t cpu = cpu_clock((pid_t)argument(argc, argv, "pid", 0));
    struct visit *all = calloc(together, sizeof *all);
    dice_state ^= (uint32_t)now_ns() | 1;
    alarm(60);
    epoll = epoll_create1(0);
    uint64_t start_cpu = 0, start = 0, first = 0;
    for (unsigned i = 0; i < together; i++) visit(&all[i]);
    while (done < first + count || !first) {
        struct epoll_event events[64];
        int ready = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < ready; i++) {
            struct visit *v = events[i].data.ptr;
            if (!receive(v)) continue;
            close(v->fd);
            done++;
            visit(v);
        }
        if (!first && done >= warm) first = done, start_cpu = read_clock(cpu), start = now_ns();
    }
    uint64_t used = read_clock(cpu) - start_cpu, took = now_ns() - start;
    printf("{\"messages\": %llu, \"cpu_ns\": %llu, \"wall_ns\": %llu, \"p50\": %.2f, \"p99\": %.2f}\n",
           (unsigned long long)(done - first), (unsigned long long)used, (unsigned long long)took, percentile(.5),
           percentile(.99));
    return 0;
}
