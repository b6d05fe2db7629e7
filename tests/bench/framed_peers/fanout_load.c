/* The load of a fan-out: one publisher, many subscribers, every frame that each of them is written.
 *
 *   fanout_load port=P pid=PID subscribers=1000 window=1 warm=0.3 seconds=1 open=FILE replies=K
 *               publisher_open=FILE publisher_replies=K publish=FILE save=FILE
 *
 * Every subscriber sends the bytes of `open` and waits for `replies` frames, then the publisher does as much with its
 * own. Then it publishes the bytes of `publish` (one message), keeping `window` of them in flight: the next goes out as
 * the last subscriber has got one more. Frames that the publisher itself gets are read and forgotten. Prints JSON:
 * deliveries in the window of `seconds`, the CPU time that process PID used meanwhile (ns), the time (us) from a publish
 * to the moment when the last subscriber had it, and how many bytes a delivery has. The first frame delivered is written
 * to `save`, so that another server can be given the same bytes to write.
 */

#include "common.h"

#define READ 262144

struct connection {
    int fd;
    uint64_t frames; /* complete ones, read */
    size_t at, length; /* bytes read of the frame under way, and all of its bytes once the header is there */
    char header[HEADER];
};

static char input[READ];
static struct connection publisher;
static uint64_t delivered, delivered_bytes;
static int epoll;
static const char *save;

static void saved(const char *data, size_t length) {
    FILE *file = fopen(save, "wb");
    if (!file || fwrite(data, 1, length, file) != length || fclose(file)) die("cannot write %s", save);
    save = NULL;
}

static int receive(struct connection *c, int counting) {
    ssize_t got = recv(c->fd, input, READ, 0);
    if (got < 0 && errno == EAGAIN) return 0;
    if (got <= 0) die("the server ended a connection");
    size_t left = (size_t)got;
    if (counting && save && c != &publisher && !c->at && left >= HEADER && left >= HEADER + frame_length(input))
        saved(input, HEADER + frame_length(input));
    if (counting && c != &publisher) delivered_bytes += left;
    for (char *from = input; left;) {
        size_t piece = (c->at < HEADER ? HEADER : c->length) - c->at;
        if (piece > left) piece = left;
        if (c->at < HEADER) memcpy(c->header + c->at, from, piece);
        from += piece, left -= piece, c->at += piece;
        if (c->at == HEADER) c->length = HEADER + (size_t)frame_length(c->header);
        if (c->at >= HEADER && c->at == c->length) {
            c->frames++, c->at = 0;
            if (counting && c != &publisher) delivered++;
        }
    }
    return 1;
}

static void open_session(struct connection *c, int port, const char *bytes, size_t size, uint64_t replies) {
    c->fd = connect_to(port);
    if (send(c->fd, bytes, size, MSG_NOSIGNAL) != (ssize_t)size) die("cannot send what opens a session");
    watch(epoll, EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
    while (c->frames < replies) {
        struct epoll_event events[64];
        int ready = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < ready; i++) receive(events[i].data.ptr, 0);
    }
}

int main(int argc, char **argv) {
    int port = (int)argument(argc, argv, "port", 0);
    unsigned subscribers = (unsigned)argument(argc, argv, "subscribers", 1000);
    uint64_t window = (uint64_t)argument(argc, argv, "window", 1);
    double warm = argument(argc, argv, "warm", 0.3), seconds = argument(argc, argv, "seconds", 1);
    clockid_t cpu = cpu_clock((pid_t)argument(argc, argv, "pid", 0));
    size_t open_size, publisher_size, publish_size;
    char *open = file_argument(argc, argv, "open", &open_size);
    char *publisher_open = file_argument(argc, argv, "publisher_open", &publisher_size);
    char *publish = file_argument(argc, argv, "publish", &publish_size);
    alarm((unsigned)(warm + seconds + 30));
    epoll = epoll_create1(0);

    struct connection *all = calloc(subscribers, sizeof *all);
    for (unsigned i = 0; i < subscribers; i++)
        open_session(&all[i], port, open, open_size, (uint64_t)argument(argc, argv, "replies", 1));
    open_session(&publisher, port, publisher_open, publisher_size,
                 (uint64_t)argument(argc, argv, "publisher_replies", 0));
    save = text_argument(argc, argv, "save", NULL);

    uint64_t start = now_ns(), measured = start + (uint64_t)(warm * 1e9), end = measured + (uint64_t)(seconds * 1e9);
    uint64_t published = 0, first = 0, first_bytes = 0, cpu_start = 0;
    uint64_t *sent_at = calloc(window, sizeof *sent_at); /* of the publishes in flight, a ring */
    uint64_t complete = 0;                               /* publishes that every subscriber has */
    int measuring = 0;
    for (;;) { /* never sleeps: waking a reader is paid by the writer, and says nothing of it */
        uint64_t now = now_ns();
        if (!measuring && now >= measured) {
            if (!delivered) die("nothing was delivered in %g s", warm);
            measuring = 1;
            first = delivered, first_bytes = delivered_bytes, cpu_start = read_clock(cpu);
            measured = now;
        }
        if (now >= end) break;
        for (; complete < delivered / subscribers; complete++)
            if (measuring) count_latency(now - sent_at[complete % window]);
        for (; published < complete + window; published++) {
            sent_at[published % window] = now;
            if (send(publisher.fd, publish, publish_size, MSG_NOSIGNAL) != (ssize_t)publish_size)
                die("cannot publish");
        }
        struct epoll_event events[256];
        int ready = epoll_wait(epoll, events, 256, 0);
        for (int i = 0; i < ready; i++) receive(events[i].data.ptr, 1);
    }
    uint64_t used = read_clock(cpu) - cpu_start, took = now_ns() - measured;
    for (unsigned i = 0; i < subscribers; i++) { /* whoever got none proves that the figures are of something else */
        if (all[i].frames <= (uint64_t)argument(argc, argv, "replies", 1)) die("subscriber %u got nothing", i);
    }
    printf("{\"messages\": %llu, \"cpu_ns\": %llu, \"wall_ns\": %llu, \"p50\": %.2f, \"p99\": %.2f, \"bytes\": %.1f}\n",
           (unsigned long long)(delivered - first), (unsigned long long)used, (unsigned long long)took,
           percentile(.5), percentile(.99), (double)(delivered_bytes - first_bytes) / (double)(delivered - first));
    return 0;
}
