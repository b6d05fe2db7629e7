/* The limit: a WebSocket relay with nothing but what the wire demands, one thread, one epoll.
 *
 * /sub subscribes; what comes from anybody else is published, as it is, to all who did. What a round of epoll brought
 * goes out with one send() to each subscriber at its end. Frames have to be whole, masked, at most 64 KiB; UTF-8,
 * fragments and slow readers are not looked at: a short write ends the program, as the reader of this bench keeps up.
 */

#include "websocket.h"

#define MOST 65536

struct peer {
    int fd, place; /* among the subscribers, -1 for none */
    int upgraded;
    char *held; /* of what is not whole */
    size_t have, room;
};

static char input[1 << 18], *out;
static size_t out_size, out_room;
static struct peer *subscribers[65536];
static int count, epoll;

static void end(struct peer *p) {
    if (p->place >= 0) subscribers[p->place] = subscribers[--count], subscribers[p->place]->place = p->place;
    close(p->fd);
    free(p->held);
    free(p);
}

static void deliver(void) {
    for (int i = 0; i < count; i++) {
        ssize_t sent = send(subscribers[i]->fd, out, out_size, MSG_NOSIGNAL);
        if (sent < 0 && (errno == EPIPE || errno == ECONNRESET)) continue; /* the run is over */
        if (sent != (ssize_t)out_size) die("cannot write to a subscriber");
    }
    out_size = 0;
}

static size_t upgrade(struct peer *p, const char *data, size_t length) {
    const char *over = memmem(data, length, HEAD_END, 4);
    if (!over) return 0;
    size_t head = (size_t)(over - data) + 4;
    const char *key = memmem(data, head, "Sec-WebSocket-Key: ", 19);
    if (!key || memcmp(data, "GET /", 5)) die("no upgrade: %.*s", (int)head, data);
    char accept[29], answer[256];
    accept_of(key + 19, accept);
    int size = snprintf(answer, sizeof answer,
                        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        "Sec-WebSocket-Accept: %s\r\n\r\n", accept);
    if (send(p->fd, answer, (size_t)size, MSG_NOSIGNAL) != size) die("cannot answer a request");
    p->upgraded = 1;
    if (!memcmp(data, "GET /sub ", 9)) p->place = count, subscribers[count++] = p;
    return head;
}

static void unmask(char *to, const char *from, size_t length, const char *key) {
    uint64_t eight, word;
    memcpy(&eight, key, 4);
    memcpy((char *)&eight + 4, key, 4);
    size_t i = 0;
    for (; i + 8 <= length; i += 8) {
        memcpy(&word, from + i, 8);
        word ^= eight;
        memcpy(to + i, &word, 8);
    }
    for (; i < length; i++) to[i] = from[i] ^ key[i & 3];
}

/* How much of it was whole; SIZE_MAX: the peer is gone. */
static size_t frames(struct peer *p, const char *data, size_t length) {
    size_t used = 0;
    while (length - used >= 6) {
        const char *at = data + used;
        size_t size = (unsigned char)at[1] & 127, head = 6;
        if (!(at[1] & 0x80)) die("a frame without a mask");
        if (size == 126) {
            if (length - used < 8) break;
            size = (size_t)(unsigned char)at[2] << 8 | (unsigned char)at[3], head = 8;
        }
        if (size > MOST || !(at[0] & 0x80)) die("a frame that is not for this bench");
        if (length - used < head + size) break;
        int opcode = at[0] & 0x0F;
        used += head + size;
        if (opcode <= 2 && !count) continue; /* nobody hears it: what a broker need not do, it does not */
        if (opcode <= 2) {
            if (out_room < out_size + size + 16) out = realloc(out, out_room = 2 * (out_size + size + 16));
            out_size += put_head(out + out_size, 0x80 | opcode, size, 0);
            unmask(out + out_size, at + head, size, at + head - 4);
            out_size += size;
            continue;
        }
        char answer[128] = {(char)(opcode == 9 ? 0x8A : 0x80 | opcode), (char)size};
        unmask(answer + 2, at + head, size, at + head - 4);
        if (opcode != 10) send(p->fd, answer, 2 + size, MSG_NOSIGNAL);
        if (opcode == 8) {
            end(p);
            return SIZE_MAX;
        }
    }
    return used;
}

static void serve(struct peer *p) {
    memcpy(input, p->held, p->have);
    ssize_t got = recv(p->fd, input + p->have, sizeof input - p->have, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        end(p);
        return;
    }
    size_t all = p->have + (size_t)got, used = 0;
    if (!p->upgraded) used = upgrade(p, input, all);
    if (p->upgraded && used < all) {
        size_t more = frames(p, input + used, all - used);
        if (more == SIZE_MAX) return;
        used += more;
    }
    p->have = all - used;
    if (p->have > p->room) p->held = realloc(p->held, p->room = p->have + 256);
    memcpy(p->held, input + used, p->have);
}

int main(void) {
    int listener = listen_anywhere();
    struct epoll_event events[256];
    epoll = epoll_create1(0);
    watch(epoll, EPOLL_CTL_ADD, listener, EPOLLIN, NULL);
    for (;;) {
        int ready = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.ptr) {
                serve(events[i].data.ptr);
                continue;
            }
            int fd = accept(listener, NULL, NULL);
            if (fd < 0) continue;
            non_blocking(fd);
            struct peer *p = calloc(1, sizeof *p);
            p->fd = fd, p->place = -1;
            watch(epoll, EPOLL_CTL_ADD, fd, EPOLLIN, p);
        }
        if (out_size) deliver();
    }
}
