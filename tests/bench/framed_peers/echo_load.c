/* The load on an echo server, and its proof.
 *
 *   echo_load port=P pid=PID size=64 connections=50 window=64 warm=0.3 seconds=1
 *       Keeps `window` frames of `size` bytes of payload in flight on every connection: whatever comes back is sent
 *       anew, as many frames with one send() as came with one recv(). The first eight bytes of a payload are the time
 *       it was sent. Prints JSON: messages echoed in the window of `seconds` after the warm-up, the CPU time that process
 *       PID used meanwhile (ns), and the latencies (us).
 *
 *   echo_load port=P check=BYTES connections=8
 *       Sends BYTES of frames of mixed sizes (empty ones too) on every connection, cut where frames do not end, and
 *       compares every byte that comes back.
 */

#include "common.h"

#define READ 262144
#define STAMP 8

struct connection {
    int fd;
    size_t at;                      /* bytes of the frame under way that were read, header included */
    char head[HEADER + STAMP];      /* its first bytes */
    char *frames;                   /* `window` frames, written from the start each time */
    size_t sent, ready;             /* bytes [sent, ready) of `frames` are to be sent */
    uint32_t credit;                /* frames that came back and were not sent anew yet */
    uint32_t events;                /* what its socket is watched for */
};

static char input[READ];
static size_t size, frame;          /* of a payload; with its header */
static uint64_t messages;
static int epoll, measuring;

static void echoed(const char *head, uint64_t now) {
    uint64_t stamp;
    if (frame_length(head) != size) die("out of step: a frame of %u bytes came back", frame_length(head));
    memcpy(&stamp, head + HEADER, STAMP);
    messages++;
    if (measuring) count_latency(now - stamp);
}

static void send_more(struct connection *c) {
    if (c->sent == c->ready) {
        if (!c->credit) return;
        uint64_t now = now_ns();
        for (uint32_t i = 0; i < c->credit; i++) memcpy(c->frames + i * frame + HEADER, &now, STAMP);
        c->sent = 0;
        c->ready = c->credit * frame;
        c->credit = 0;
    }
    ssize_t sent = send(c->fd, c->frames + c->sent, c->ready - c->sent, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) die("cannot send: %s", strerror(errno));
    if (sent > 0) c->sent += (size_t)sent;
    uint32_t events = c->sent < c->ready ? EPOLLIN | EPOLLOUT : EPOLLIN;
    if (events != c->events) watch(epoll, EPOLL_CTL_MOD, c->fd, c->events = events, c);
}

/* Walks what was read; `at` carries a frame that is not complete over to the next read. */
static void receive(struct connection *c) {
    ssize_t got = recv(c->fd, input, READ, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) die("the server ended a connection");
    uint64_t now = now_ns(), before = messages;
    size_t left = (size_t)got;
    for (char *from = input; left;) {
        if (!c->at && left >= frame) {
            echoed(from, now);
            from += frame, left -= frame;
            continue;
        }
        size_t piece = (c->at < sizeof c->head ? sizeof c->head : frame) - c->at;
        if (piece > left) piece = left;
        if (c->at < sizeof c->head) memcpy(c->head + c->at, from, piece);
        from += piece, left -= piece, c->at += piece;
        if (c->at == frame) {
            echoed(c->head, now);
            c->at = 0;
        }
    }
    c->credit += (uint32_t)(messages - before);
    if (c->credit) send_more(c);
}

static void run_until(uint64_t end) {
    struct epoll_event events[256];
    while (now_ns() < end) {
        int ready = epoll_wait(epoll, events, 256, 100);
        for (int i = 0; i < ready; i++) {
            if (events[i].events & ~(uint32_t)EPOLLOUT) receive(events[i].data.ptr);
            if (events[i].events & EPOLLOUT) send_more(events[i].data.ptr);
        }
    }
}

static void load(int argc, char **argv, int port, unsigned connections) {
    unsigned window = (unsigned)argument(argc, argv, "window", 64);
    double warm = argument(argc, argv, "warm", 0.3), seconds = argument(argc, argv, "seconds", 1);
    clockid_t cpu = cpu_clock((pid_t)argument(argc, argv, "pid", 0));
    size = (size_t)argument(argc, argv, "size", 64);
    frame = HEADER + size;
    if (size < STAMP) die("cannot time payloads below %d bytes", STAMP);
    struct connection *all = calloc(connections, sizeof *all);
    for (unsigned i = 0; i < connections; i++) {
        all[i].fd = connect_to(port);
        all[i].credit = window;
        all[i].frames = malloc(window * frame);
        memset(all[i].frames, 'x', window * frame);
        for (unsigned j = 0; j < window; j++) put_length(all[i].frames + j * frame, (uint32_t)size);
        all[i].events = EPOLLIN | EPOLLOUT;
        watch(epoll, EPOLL_CTL_ADD, all[i].fd, all[i].events, &all[i]);
    }
    run_until(now_ns() + (uint64_t)(warm * 1e9));
    if (!messages) die("nothing came back in %g s", warm);
    measuring = 1;
    uint64_t first = messages, cpu_start = read_clock(cpu), start = now_ns();
    run_until(start + (uint64_t)(seconds * 1e9));
    uint64_t used = read_clock(cpu) - cpu_start, took = now_ns() - start;
    printf("{\"messages\": %llu, \"cpu_ns\": %llu, \"wall_ns\": %llu, \"p50\": %.2f, \"p99\": %.2f}\n",
           (unsigned long long)(messages - first), (unsigned long long)used, (unsigned long long)took,
           percentile(.5), percentile(.99));
}

/* --- the proof --------------------------------------------------------------------------------------------------- */

struct proof {
    int fd;
    size_t sent, received;
};

static uint32_t chance(void) {
    static uint32_t state = 2463534242u; /* xorshift: the same frames each run */
    state ^= state << 13, state ^= state >> 17, state ^= state << 5;
    return state;
}

static void check(int port, unsigned connections, size_t total) {
    static const uint32_t sizes[] = {0, 0, 1, 3, 64, 64, 64, 64, 700, 1024, 5000, 70000, 200000};
    char *frames = malloc(total + 300000);
    size_t end = 0, count = 0;
    while (end < total) {
        uint32_t length = sizes[chance() % (sizeof sizes / sizeof *sizes)];
        put_length(frames + end, length);
        for (uint32_t i = 0; i < length; i++) frames[end + HEADER + i] = (char)chance();
        end += HEADER + length, count++;
    }
    struct proof *all = calloc(connections, sizeof *all);
    for (unsigned i = 0; i < connections; i++) {
        all[i].fd = connect_to(port);
        watch(epoll, EPOLL_CTL_ADD, all[i].fd, EPOLLIN | EPOLLOUT, &all[i]);
    }
    unsigned open = connections;
    while (open) {
        struct epoll_event events[64];
        int ready = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < ready; i++) {
            struct proof *p = events[i].data.ptr;
            if (events[i].events & ~(uint32_t)EPOLLOUT) {
                ssize_t got = recv(p->fd, input, READ, 0);
                if (got <= 0) die("the server ended a connection after %zu of %zu bytes", p->received, end);
                if ((size_t)got > end - p->received || memcmp(frames + p->received, input, (size_t)got))
                    die("what came back after byte %zu is not what was sent", p->received);
                p->received += (size_t)got;
                if (p->received == end) {
                    close(p->fd);
                    open--;
                    continue;
                }
            }
            if (events[i].events & EPOLLOUT) {
                size_t piece = 1 + chance() % (chance() % 4 ? 100000 : 9);
                if (piece > end - p->sent) piece = end - p->sent;
                ssize_t sent = send(p->fd, frames + p->sent, piece, MSG_NOSIGNAL);
                if (sent > 0) p->sent += (size_t)sent;
                if (p->sent == end) watch(epoll, EPOLL_CTL_MOD, p->fd, EPOLLIN, p);
            }
        }
    }
    printf("{\"frames\": %zu, \"bytes\": %zu}\n", count * connections, end * connections);
}

int main(int argc, char **argv) {
    int port = (int)argument(argc, argv, "port", 0);
    unsigned connections = (unsigned)argument(argc, argv, "connections", 50);
    size_t proof = (size_t)argument(argc, argv, "check", 0);
    alarm((unsigned)(argument(argc, argv, "warm", 0.3) + argument(argc, argv, "seconds", 1) + 30));
    epoll = epoll_create1(0);
    if (proof)
        check(port, connections, proof);
    else
        load(argc, argv, port, connections);
    return 0;
}
