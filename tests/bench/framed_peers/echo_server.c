/* The limit: a C epoll echo of length-prefixed frames.
 *
 * Reads what is there, walks the lengths, sends every complete frame back with one send(), keeps the rest. A client that
 * does not read is not read either. It does what the others do and no more: no limits, no counters worth the name.
 */

#include "common.h"

#define READ 131072 /* what is read at once, beyond what a frame under way still needs */

struct connection {
    int fd, writing;
    size_t size, start, whole, end; /* bytes [start, whole) are complete frames to send, [whole, end) one under way */
    char *data;
};

static uint64_t messages;

static void drop(struct connection *connection) {
    close(connection->fd);
    free(connection->data);
    free(connection);
}

/* Move `whole` to the end of the last complete frame. Returns the bytes that the frame under way needs, 0 unknown. */
static size_t walk(struct connection *c) {
    while (c->end - c->whole >= HEADER) {
        size_t length = HEADER + (size_t)frame_length(c->data + c->whole);
        if (length > c->end - c->whole) return length;
        c->whole += length;
        messages++;
    }
    return 0;
}

/* Returns 0 if the connection is gone. */
static int flush(int epoll, struct connection *c) {
    while (c->start < c->whole) {
        ssize_t sent = send(c->fd, c->data + c->start, c->whole - c->start, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) return 0;
        if (sent < 0) {
            if (!c->writing) watch(epoll, EPOLL_CTL_MOD, c->fd, EPOLLOUT, c);
            c->writing = 1;
            return 1;
        }
        c->start += (size_t)sent;
    }
    if (c->writing) watch(epoll, EPOLL_CTL_MOD, c->fd, EPOLLIN, c);
    c->writing = 0;
    memmove(c->data, c->data + c->whole, c->end - c->whole);
    c->end -= c->whole;
    c->start = c->whole = 0;
    return 1;
}

static int serve(int epoll, struct connection *c) {
    if (c->writing) return flush(epoll, c);
    ssize_t got = recv(c->fd, c->data + c->end, c->size - c->end, 0);
    if (got < 0 && errno == EAGAIN) return 1;
    if (got <= 0) return 0;
    c->end += (size_t)got;
    size_t need = walk(c);
    if (need + READ > c->size) {
        c->size = need + READ;
        c->data = realloc(c->data, c->size);
    }
    return c->whole ? flush(epoll, c) : 1;
}

int main(void) {
    int epoll = epoll_create1(0), listener = listen_anywhere();
    struct epoll_event events[256];
    watch(epoll, EPOLL_CTL_ADD, listener, EPOLLIN, NULL);
    for (;;) {
        int ready = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            struct connection *connection = events[i].data.ptr;
            if (connection) {
                if (!serve(epoll, connection)) drop(connection);
                continue;
            }
            int fd = accept(listener, NULL, NULL);
            if (fd < 0) continue;
            non_blocking(fd);
            connection = calloc(1, sizeof *connection);
            *connection = (struct connection){.fd = fd, .size = READ, .data = malloc(READ)};
            watch(epoll, EPOLL_CTL_ADD, fd, EPOLLIN, connection);
        }
    }
}
