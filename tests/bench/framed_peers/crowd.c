/* A crowd that does nothing, or leaves without a word.
 *
 *   crowd port=P connections=5000 open=FILE replies=K
 *       Opens them all, sends the bytes of `open` on each and waits for `replies` frames' worth of answer (none: goes
 *       on at once). Prints "ready" and holds them until its standard input ends.
 *
 *   crowd port=P connections=10000 open=FILE abandon=1
 *       Opens them in waves of a thousand, sends `open` and half a frame on each, and abandons them: every other one
 *       by a reset, the rest by a plain close with a frame under way. Prints "ready" at the end.
 */

#include "common.h"

#define WAVE 1000

/* Wait, blocking, until `replies` complete frames were read. */
static void answered(int fd, int replies) {
    char data[65536];
    size_t end = 0;
    while (replies) {
        ssize_t got = recv(fd, data + end, sizeof data - end, 0);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
            struct timespec moment = {.tv_nsec = 20000};
            nanosleep(&moment, NULL);
            continue;
        }
        if (got <= 0) die("the server ended a connection");
        end += (size_t)got;
        size_t at = 0;
        while (replies && end - at >= HEADER && end - at >= HEADER + (size_t)frame_length(data + at))
            at += HEADER + (size_t)frame_length(data + at), replies--;
        memmove(data, data + at, end -= at);
    }
}

int main(int argc, char **argv) {
    int port = (int)argument(argc, argv, "port", 0), replies = (int)argument(argc, argv, "replies", 0);
    int connections = (int)argument(argc, argv, "connections", 5000), abandon = (int)argument(argc, argv, "abandon", 0);
    size_t size;
    char *open = file_argument(argc, argv, "open", &size), half[] = {0, 0, 1, 0, 'h', 'a', 'l', 'f'};
    struct linger reset = {.l_onoff = 1};
    int *fds = calloc((size_t)connections, sizeof *fds);
    alarm(60);
    for (int i = 0; i < connections; i++) {
        fds[i] = connect_to(port);
        if (size && send(fds[i], open, size, MSG_NOSIGNAL) < 0) die("cannot send: %s", strerror(errno));
        answered(fds[i], replies);
        if (!abandon) continue;
        send(fds[i], half, sizeof half, MSG_NOSIGNAL);
        if (i % WAVE < WAVE - 1 && i < connections - 1) continue;
        for (int j = i - i % WAVE; j <= i; j++) {
            if (j % 2) setsockopt(fds[j], SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
            close(fds[j]);
        }
    }
    printf("ready\n");
    fflush(stdout);
    if (!abandon) while (read(0, half, sizeof half) > 0) {}
    return 0;
}
