/* The load of a broker: subscribers that check every message, and publishers; in the words of WebSocket, NATS or MQTT.
 *
 *   broker_load what=fan-out|ingest|crowd speaks=websocket|nats|mqtt port=P pid=PID
 *               other_port=P subscribers=100 window=64 pace=0 publishers=50 size=128 warm=0.3 seconds=1
 *               subscriber=FILE subscriber_path=/ subscriber_replies=K publisher=FILE publisher_path=/
 *               publisher_replies=K before=FILE after=FILE opcode=2
 *
 * A connection begins, with WebSocket, with the upgrade of its path; then it sends the bytes of its file (WebSocket:
 * one message) and waits for so many units: frames, lines, packets. A message is `before`, the payload, `after`. The
 * payload is "#", ten digits that count the messages, and x's up to `size`.
 *
 *   fan-out   one publisher keeps `window` messages in flight, or publishes `pace` a second. Every subscriber has to get
 *             every message, once, in order, whole. Latency is that of each delivery, from the publish (pace) or of the
 *             last subscriber (window)
 *   ingest    nobody subscribes. Every publisher sends `window` messages and a ping, and goes on when it is answered
 *             With `other_port` every other subscriber is there
 *   crowd     the subscribers connect and are silent: prints "ready", and stays until it is killed
 *
 * Prints JSON: messages delivered (ingest: taken) in the window of `seconds`, CPU of process PID meanwhile (ns), wall
 * (ns), p50 and p99 (us), and over the whole run how many messages were published and delivered.
 */

#include "websocket.h"

#define RING 65536 /* publishes of which it is remembered when they went out */
#define SEEN 32768

enum speech { WEBSOCKET, NATS, MQTT };
enum kind { OTHER, DELIVERY, PONG };

struct connection {
    int fd, upgrading;
    char accept[29];
    uint64_t next;  /* of messages, the one that has to come */
    uint64_t units; /* that came, whatever they are */
    uint64_t pongs, due;
    char *held;
    size_t have, room;
};

static enum speech speech;
static int port, epoll, opcode, measuring_latency;
static size_t size;
static char *before, *after, *fill;
static size_t before_size, after_size;
static uint64_t sent_at[RING], delivered, now;

/* --- units ------------------------------------------------------------------------------------------------------- */

static size_t unit_of(const char *data, size_t length, enum kind *kind, size_t *body) {
    *kind = OTHER;
    *body = 0;
    if (speech == WEBSOCKET) {
        size_t whole = frame_of(data, length, body);
        if (whole) {
            int code = data[0] & 0x0F;
            *kind = code == 1 || code == 2 ? DELIVERY : code == 10 ? PONG : OTHER;
            if (code == 8) die("the server closed: %.*s", (int)(whole - *body), data + *body);
        }
        return whole;
    }
    if (speech == NATS) {
        const char *end = memchr(data, '\n', length);
        if (!end) return 0;
        size_t line = (size_t)(end - data) + 1;
        if (!memcmp(data, "PONG", 4)) *kind = PONG;
        if (!memcmp(data, "-ERR", 4)) die("%.*s", (int)line, data);
        if (memcmp(data, "MSG ", 4)) return line;
        const char *digits = end - 1;
        while (digits[-1] >= '0' && digits[-1] <= '9') digits--;
        *kind = DELIVERY;
        *body = line;
        return line + (size_t)atoi(digits) + 2;
    }
    size_t left = 0, at = 1;
    for (int shift = 0;; shift += 7, at++) {
        if (at >= length) return 0;
        left |= (size_t)(data[at] & 127) << shift;
        if (!(data[at] & 128)) break;
    }
    int packet = (unsigned char)data[0] >> 4;
    *kind = packet == 3 ? DELIVERY : packet == 13 ? PONG : OTHER;
    *body = at + 1;
    return at + 1 + left;
}

/* Whether it is the message that has to come, and whole. */
static void check(struct connection *c, const char *at, size_t length) {
    const char *mark = memchr(at, '#', length);
    if (!mark || (size_t)(at + length - mark) < size) die("a message without what was published");
    uint64_t number = 0;
    for (int i = 1; i <= 10; i++) number = number * 10 + (uint64_t)(mark[i] - '0');
    if (number != c->next) die("message %llu came in the place of %llu", (unsigned long long)number,
                               (unsigned long long)c->next);
    if (memcmp(mark + 11, fill, size - 11)) die("message %llu is not what was published", (unsigned long long)number);
    c->next++;
    delivered++;
    if (measuring_latency) count_latency(now - sent_at[number % RING]);
}

static size_t units(struct connection *c, const char *data, size_t length, int counting) {
    size_t used = 0;
    if (c->upgrading) {
        used = head_of(data, length, c->accept);
        if (!used) return 0;
        c->upgrading = 0;
    }
    while (used < length) {
        enum kind kind;
        size_t body, whole = unit_of(data + used, length - used, &kind, &body);
        if (!whole || whole > length - used) break;
        c->units++;
        if (kind == PONG) c->pongs++;
        if (kind == DELIVERY && counting) check(c, data + used + body, whole - body);
        used += whole;
    }
    return used;
}

static void receive(struct connection *c, int counting) {
    static char input[262144];
    memcpy(input, c->held, c->have);
    ssize_t got = recv(c->fd, input + c->have, sizeof input - c->have, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) die("the server ended a connection");
    now = now_ns();
    size_t all = c->have + (size_t)got, used = units(c, input, all, counting);
    c->have = all - used;
    if (c->have > c->room) c->held = realloc(c->held, c->room = 2 * c->have);
    memcpy(c->held, input + used, c->have);
}

/* --- connections ------------------------------------------------------------------------------------------------- */

static void say(struct connection *c, const char *data, size_t length) {
    if (send(c->fd, data, length, MSG_NOSIGNAL) != (ssize_t)length) die("cannot send %zu bytes", length);
}

static void wait_for(struct connection *c, uint64_t replies) {
    while (c->upgrading || c->units < replies) {
        struct epoll_event events[64];
        int ready = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < ready; i++) receive(events[i].data.ptr, 0);
    }
}

static void begin(struct connection *c, int port, const char *path, const char *opening, size_t length, uint64_t replies) {
    c->fd = connect_to(port);
    int room = 1 << 20;
    setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    watch(epoll, EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
    if (speech == WEBSOCKET) {
        char request[1024];
        size_t requested = request_of(request, sizeof request, port, path, c->accept);
        c->upgrading = 1;
        say(c, request, requested);
        wait_for(c, 0);
    }
    if (length && speech == WEBSOCKET) {
        char *frame = malloc(length + 14);
        say(c, frame, put_masked(frame, opcode, opening, length));
        free(frame);
    } else if (length) {
        say(c, opening, length);
    }
    wait_for(c, replies);
}

static size_t put_message(char *at, uint64_t number) {
    static char *plain;
    if (!plain) {
        plain = malloc(before_size + size + after_size + 16);
        memcpy(plain, before, before_size);
        memcpy(plain + before_size + 11, fill, size - 11);
        memcpy(plain + before_size + size, after, after_size);
    }
    char *mark = plain + before_size;
    mark[0] = '#';
    for (int i = 10; i; i--, number /= 10) mark[i] = (char)('0' + number % 10);
    size_t all = before_size + size + after_size;
    if (speech == WEBSOCKET) return put_masked(at, opcode, plain, all);
    memcpy(at, plain, all);
    return all;
}

static size_t put_ping(char *at) {
    if (speech == WEBSOCKET) return put_masked(at, 9, "", 0);
    size_t length = speech == NATS ? 6 : 2;
    memcpy(at, speech == NATS ? "PING\r\n" : "\xC0\0", length);
    return length;
}

/* --- what is measured -------------------------------------------------------------------------------------------- */

static uint64_t start_wall, start_cpu, start_count;
static clockid_t cpu;

static void start_measuring(uint64_t count) {
    start_wall = now_ns(), start_cpu = read_clock(cpu), start_count = count;
}

static void report(uint64_t count, uint64_t used, uint64_t took, uint64_t published) {
    printf("{\"messages\": %llu, \"cpu_ns\": %llu, \"wall_ns\": %llu, \"p50\": %.2f, \"p99\": %.2f, \"published\": %llu, "
           "\"delivered\": %llu}\n",
           (unsigned long long)(count - start_count), (unsigned long long)used, (unsigned long long)took,
           percentile(.5), percentile(.99), (unsigned long long)published, (unsigned long long)delivered);
}

static void fan_out(unsigned subscribers, struct connection *all, struct connection *publisher, uint64_t window,
                    double pace, double warm, double seconds) {
    char *batch = malloc((window + 1) * (before_size + size + after_size + 16));
    uint64_t start = now_ns(), measured = start + (uint64_t)(warm * 1e9), end = measured + (uint64_t)(seconds * 1e9);
    uint64_t published = 0, complete = 0, used = 0, took = 0, counted = 0;
    double between = pace ? 1e9 / pace : 0;
    if (window > RING / 2) die("no more than %d in flight", RING / 2);
    measuring_latency = pace != 0;
    int measuring = 0;
    for (;;) { /* never sleeps: waking a reader is paid by the writer, and says nothing of it */
        now = now_ns();
        if (!measuring && now >= measured) {
            if (!delivered) die("nothing was delivered in %g s", warm);
            measuring = 1;
            samples = 0;
            memset(histogram, 0, sizeof histogram);
            start_measuring(delivered);
            end = start_wall + (uint64_t)(seconds * 1e9);
        }
        if (measuring == 1 && now >= end) { /* and now everybody has to get what is still under way */
            measuring = 2;
            used = read_clock(cpu) - start_cpu, took = now_ns() - start_wall, counted = delivered;
        }
        if (measuring == 2 && delivered == published * subscribers) break;
        for (; complete < delivered / subscribers; complete++)
            if (measuring == 1 && !pace) count_latency(now - sent_at[complete % RING]);
        size_t length = 0;
        while (measuring < 2 && (pace ? now >= start + (uint64_t)((double)published * between)
                                      : published < complete + window)) {
            sent_at[published % RING] = now;
            length += put_message(batch + length, published++);
            if (pace) break;
        }
        if (length) say(publisher, batch, length);
        struct epoll_event events[256];
        int ready = epoll_wait(epoll, events, 256, 0);
        for (int i = 0; i < ready; i++) receive(events[i].data.ptr, 1);
    }
    for (unsigned i = 0; i < subscribers; i++)
        if (all[i].next != published) die("subscriber %u got %llu of %llu messages", i,
                                          (unsigned long long)all[i].next, (unsigned long long)published);
    report(counted, used, took, published);
}

static void ingest(unsigned publishers, struct connection *all, uint64_t window, double warm, double seconds) {
    char *batch = malloc(window * (before_size + size + after_size + 16) + 64);
    size_t length = 0;
    for (uint64_t i = 0; i < window; i++) length += put_message(batch + length, i);
    length += put_ping(batch + length);
    uint64_t start = now_ns(), measured = start + (uint64_t)(warm * 1e9), end = measured + (uint64_t)(seconds * 1e9);
    uint64_t taken = 0, used = 0, took = 0, counted = 0, waiting = 0;
    int measuring = 0;
    for (unsigned i = 0; i < publishers; i++) {
        all[i].due = all[i].pongs + 1;
        say(&all[i], batch, length), waiting++;
    }
    while (waiting) {
        now = now_ns();
        if (!measuring && now >= measured) {
            measuring = 1;
            start_measuring(taken);
            end = start_wall + (uint64_t)(seconds * 1e9);
        }
        if (measuring == 1 && now >= end) {
            measuring = 2;
            used = read_clock(cpu) - start_cpu, took = now_ns() - start_wall, counted = taken;
        }
        struct epoll_event events[256];
        int ready = epoll_wait(epoll, events, 256, 100);
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            receive(c, 0);
            if (c->pongs < c->due) continue;
            taken += window, waiting--;
            if (measuring == 2) continue;
            c->due = c->pongs + 1;
            say(c, batch, length), waiting++;
        }
    }
    report(counted, used, took, taken);
}

int main(int argc, char **argv) {
    const char *what = text_argument(argc, argv, "what", "fan-out"), *word = text_argument(argc, argv, "speaks", "");
    speech = !strcmp(word, "nats") ? NATS : !strcmp(word, "mqtt") ? MQTT : WEBSOCKET;
    port = (int)argument(argc, argv, "port", 0);
    int other = (int)argument(argc, argv, "other_port", port);
    size = (size_t)argument(argc, argv, "size", 128);
    opcode = (int)argument(argc, argv, "opcode", 2);
    double warm = argument(argc, argv, "warm", .3), seconds = argument(argc, argv, "seconds", 1);
    uint64_t window = (uint64_t)argument(argc, argv, "window", 1);
    unsigned subscribers = (unsigned)argument(argc, argv, "subscribers", 0);
    unsigned publishers = (unsigned)argument(argc, argv, "publishers", 1);
    size_t opening_size, publisher_size;
    char *opening = file_argument(argc, argv, "subscriber", &opening_size);
    char *publisher = file_argument(argc, argv, "publisher", &publisher_size);
    before = file_argument(argc, argv, "before", &before_size);
    after = file_argument(argc, argv, "after", &after_size);
    fill = memset(malloc(size), 'x', size);
    epoll = epoll_create1(0);
    int crowd = !strcmp(what, "crowd");
    alarm((unsigned)(crowd ? 300 : warm + seconds + 40));
    if (!crowd) cpu = cpu_clock((pid_t)argument(argc, argv, "pid", 0));

    struct connection *all = calloc(subscribers + publishers, sizeof *all);
    for (unsigned i = 0; i < subscribers; i++)
        begin(&all[i], i % 2 ? other : port, text_argument(argc, argv, "subscriber_path", "/"), opening, opening_size,
              (uint64_t)argument(argc, argv, "subscriber_replies", 0));
    if (crowd) {
        puts("ready");
        fflush(stdout);
        for (;;) {
            struct epoll_event events[64]; /* what it is told meanwhile, pings not counted, does not pile up */
            int ready = epoll_wait(epoll, events, 64, -1);
            for (int i = 0; i < ready; i++) receive(events[i].data.ptr, 0);
        }
    }
    for (unsigned i = 0; i < publishers; i++)
        begin(&all[subscribers + i], port, text_argument(argc, argv, "publisher_path", "/"), publisher, publisher_size,
              (uint64_t)argument(argc, argv, "publisher_replies", 0));
    if (!strcmp(what, "ingest"))
        ingest(publishers, all + subscribers, window, warm, seconds);
    else
        fan_out(subscribers, all, &all[subscribers], window, argument(argc, argv, "pace", 0), warm, seconds);
    return 0;
}
