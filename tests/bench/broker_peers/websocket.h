/* What the broker bench's C programs know of WebSockets (RFC 6455): the handshake's answer, heads, masks. */

#include "../framed_peers/common.h"

#define HEAD_END "\r\n\r\n"

/* --- the handshake ----------------------------------------------------------------------------------------------- */

static uint32_t rotated(uint32_t x, int by) { return x << by | x >> (32 - by); }

/* SHA-1 (RFC 3174) of less than 120 bytes. */
static void sha1(const char *text, size_t length, unsigned char digest[20]) {
    uint32_t h[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    unsigned char block[128] = {0};
    size_t all = length + 9 <= 64 ? 64 : 128;
    memcpy(block, text, length);
    block[length] = 0x80;
    block[all - 2] = (unsigned char)(length * 8 >> 8), block[all - 1] = (unsigned char)(length * 8);
    for (size_t at = 0; at < all; at += 64) {
        uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 16; i++)
            w[i] = (uint32_t)block[at + 4 * i] << 24 | (uint32_t)block[at + 4 * i + 1] << 16 |
                   (uint32_t)block[at + 4 * i + 2] << 8 | block[at + 4 * i + 3];
        for (int i = 16; i < 80; i++) w[i] = rotated(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
        for (int i = 0; i < 80; i++) {
            uint32_t f = i < 20   ? ((b & c) | (~b & d)) + 0x5A827999
                         : i < 40 ? (b ^ c ^ d) + 0x6ED9EBA1
                         : i < 60 ? ((b & c) | (b & d) | (c & d)) + 0x8F1BBCDC
                                  : (b ^ c ^ d) + 0xCA62C1D6;
            uint32_t next = rotated(a, 5) + f + e + w[i];
            e = d, d = c, c = rotated(b, 30), b = a, a = next;
        }
        h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 20; i++) digest[i] = (unsigned char)(h[i / 4] >> (24 - 8 * (i % 4)));
}

static void base64(const unsigned char *data, size_t length, char *text) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < length; i += 3) {
        uint32_t three = (uint32_t)data[i] << 16;
        if (i + 1 < length) three |= (uint32_t)data[i + 1] << 8;
        if (i + 2 < length) three |= data[i + 2];
        *text++ = letters[three >> 18];
        *text++ = letters[three >> 12 & 63];
        *text++ = i + 1 < length ? letters[three >> 6 & 63] : '=';
        *text++ = i + 2 < length ? letters[three & 63] : '=';
    }
    *text = 0;
}

/* Sec-WebSocket-Accept for a key of 24 characters: 28 characters and a NUL. */
static void accept_of(const char *key, char accept[29]) {
    char both[61];
    unsigned char digest[20];
    memcpy(both, key, 24);
    memcpy(both + 24, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 37);
    sha1(both, 60, digest);
    base64(digest, 20, accept);
}

static uint32_t dice_state = 2463534242u;

/* Marsaglia's xorshift: keys and masks need not be a secret here, only differ. */
static uint32_t dice(void) {
    dice_state ^= dice_state << 13;
    dice_state ^= dice_state >> 17;
    return dice_state ^= dice_state << 5;
}

/* The request for `path`, and the Sec-WebSocket-Accept that must come. Returns its length. */
static size_t request_of(char *request, size_t room, int port, const char *path, char accept[29]) {
    unsigned char nonce[16];
    char key[25];
    for (int i = 0; i < 16; i++) nonce[i] = (unsigned char)dice();
    base64(nonce, 16, key);
    accept_of(key, accept);
    return (size_t)snprintf(request, room,
                            "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                            "User-Agent: netd-bench\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n",
                            path, port, key);
}

/* How long the head at `data` is, 0 if it is not all there. It has to agree to the upgrade. */
static size_t head_of(const char *data, size_t length, const char *accept) {
    const char *end = memmem(data, length, HEAD_END, 4);
    if (!end) return 0;
    size_t head = (size_t)(end - data) + 4;
    if (length < 12 || memcmp(data, "HTTP/1.1 101", 12)) die("no upgrade: %.*s", (int)head, data);
    if (!memmem(data, head, accept, 28)) die("the wrong Sec-WebSocket-Accept");
    return head;
}

/* --- frames ------------------------------------------------------------------------------------------------------ */

static size_t put_head(char *at, int first, size_t length, int masked) {
    at[0] = (char)first;
    if (length < 126) {
        at[1] = (char)(masked | (int)length);
        return 2;
    }
    if (length < 65536) {
        at[1] = (char)(masked | 126), at[2] = (char)(length >> 8), at[3] = (char)length;
        return 4;
    }
    die("no frame of %zu bytes here", length);
}

/* A client's frame, masked. Returns its length. */
static size_t put_masked(char *at, int opcode, const char *payload, size_t length) {
    size_t head = put_head(at, 0x80 | opcode, length, 0x80);
    char key[4];
    uint32_t rolled = dice();
    memcpy(key, &rolled, 4);
    memcpy(at + head, key, 4);
    for (size_t i = 0; i < length; i++) at[head + 4 + i] = payload[i] ^ key[i & 3];
    return head + 4 + length;
}

/* The length of a server's frame, head and all; 0: its head is not all there. `body` is where its payload begins. */
static size_t frame_of(const char *data, size_t length, size_t *body) {
    if (length < 2) return 0;
    size_t size = (unsigned char)data[1];
    if (size < 126) {
        *body = 2;
        return 2 + size;
    }
    if (size == 126) {
        if (length < 4) return 0;
        *body = 4;
        return 4 + ((size_t)(unsigned char)data[2] << 8 | (unsigned char)data[3]);
    }
    if (size != 127) die("a masked frame from the server");
    if (length < 10) return 0;
    size = 0;
    for (int i = 2; i < 10; i++) size = size << 8 | (unsigned char)data[i];
    *body = 10;
    return 10 + size;
}
