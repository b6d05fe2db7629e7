/* The limit for a fan-out: every frame that one client publishes is written to all who subscribed.
 *
 * An empty frame subscribes its sender and is answered with an empty frame. Any other frame is written, as it is, to
 * every subscriber: what one read of the publisher brought goes out with one send() each. No buffers: the reader of
 * this bench keeps up, and a short write ends the program.
 */

#include "common.h"

static char data[1 << 20];
static size_t held; /* of the publisher's frame under way, at the start of `data` */
static int subscribers[65536], count;

static void deliver(size_t size) {
    for (int i = 0; i < count; i++) {
        ssize_t sent = send(subscribers[i], data, size, MSG_NOSIGNAL);
        if (sent < 0 && (errno == EPIPE || errno == ECONNRESET)) exit(0); /* the run is over */
        if (sent != (ssize_t)size) die("cannot write to a subscriber");
    }
}

static void serve(int fd) {
    ssize_t got = recv(fd, data + held, sizeof data - held, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) exit(0); /* the run is over */
    if (!held && got == HEADER && !frame_length(data)) {
        subscribers[count++] = fd;
        if (send(fd, data, HEADER, MSG_NOSIGNAL) != HEADER) die("cannot answer a subscriber");
        return;
    }
    size_t end = held + (size_t)got, whole = 0;
    while (end - whole >= HEADER && HEADER + (size_t)frame_length(data + whole) <= end - whole)
        whole += HEADER + (size_t)frame_length(data + whole);
    if (whole) deliver(whole);
    held = end - whole;
    memmove(data, data + whole, held);
}

int main(void) {
    int epoll = epoll_create1(0), listener = listen_anywhere();
    struct epoll_event events[256];
    watch(epoll, EPOLL_CTL_ADD, listener, EPOLLIN, (void *)(intptr_t)listener);
    for (;;) {
        int ready = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            int fd = (int)(intptr_t)events[i].data.ptr;
            if (fd != listener) {
                serve(fd);
                continue;
            }
            fd = accept(listener, NULL, NULL);
            if (fd < 0) continue;
            non_blocking(fd);
            watch(epoll, EPOLL_CTL_ADD, fd, EPOLLIN, (void *)(intptr_t)fd);
        }
    }
}
