/* Changes to a script by whole steps: cut one out, copy, exchange, make a fresh one, or let libFuzzer change one's bytes and
 * put its length right. Blind changes remain, a quarter of all. Steps are those of script.pxi. */
#include "mutator.h"

#include <stdlib.h>
#include <string.h>

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);

enum { STEPS = 19, MOST = 512, SAY = 0, FRAME = 1, BULK = 4, TURN = 18, ON = 0x80 };

static const struct {
    uint8_t arguments; /* bytes before the length */
    uint8_t bytes;     /* a length and so many bytes follow */
} form[STEPS] = {{1, 1}, {4, 1}, {1, 0}, {1, 0}, {3, 0}, {2, 0}, {2, 0}, {1, 0}, {1, 0}, {1, 0},
                 {3, 0}, {1, 0}, {1, 0}, {1, 0}, {5, 0}, {1, 1}, {2, 0}, {1, 0}, {0, 0}};

static const struct {
    uint8_t kind, flags, length;
    const char *payload;
} likely[] = {
    {1, 4, 16, "\x42\x07" "CONNECT" "\x41\x05" "a:443"}, /* HEADERS */
    {1, 4, 1, "\x88"},                                   /* :status 200 */
    {1, 5, 4, "\x08\x03" "403"},
    {1, 5, 4, "\x40\x01" "xy"},                          /* a trailer */
    {0, 0, 5, "bytes"},
    {0, 1, 5, "bytes"},
    {0, 8, 5, "\2ab\0\0"},
    {3, 0, 4, "\0\0\0\x08"},
    {3, 0, 4, "\0\0\0\x07"},
    {4, 0, 6, "\0\4\0\0\0\0"},
    {4, 0, 6, "\0\4\0\x01\0\0"},
    {4, 0, 6, "\0\3\0\0\0\1"},
    {4, 1, 0, ""},
    {6, 0, 8, "12345678"},
    {6, 1, 8, "\1\0\0\0\0\0\0\0"},
    {7, 0, 8, "\0\0\0\0\0\0\0\0"},
    {7, 0, 8, "\x7f\xff\xff\xff\0\0\0\0"},
    {8, 0, 4, "\0\0\x10\0"},
    {9, 4, 1, "\x88"},
};

static unsigned state;

static unsigned dice(unsigned sides)
{
    state = state * 1103515245u + 12345u;
    return (state >> 8) % sides;
}

static size_t step_length(const uint8_t *at, const uint8_t *end)
{
    unsigned kind = (at[0] & 0x7F) % STEPS;
    size_t length = 1u + form[kind].arguments + 2u * form[kind].bytes, left = (size_t)(end - at);
    if (form[kind].bytes && length <= left)
        length += at[length - 2] | at[length - 1] << 8;
    return length < left ? length : left;
}

static size_t fresh(uint8_t *into)
{
    unsigned kind = dice(3) ? FRAME : dice(STEPS), i, pick;
    size_t length = 1u + form[kind].arguments;
    into[0] = (uint8_t)(kind | (dice(3) ? 0 : ON));
    for (i = 1; i < length; i++)
        into[i] = (uint8_t)(dice(4) ? dice(6) : dice(256));
    if (kind == FRAME) {
        pick = dice(sizeof(likely) / sizeof(likely[0]));
        into[1] = (uint8_t)dice(2);
        into[2] = likely[pick].kind;
        into[3] = likely[pick].flags;
        into[4] = (uint8_t)(dice(3) ? 1 + 2 * dice(4) : dice(12));
        into[5] = likely[pick].length;
        into[6] = 0;
        memcpy(into + 7, likely[pick].payload, likely[pick].length);
        return 7u + likely[pick].length;
    }
    if (form[kind].bytes) {
        into[length] = into[length + 1] = 0;
        length += 2;
    }
    return length;
}

/* The bytes of a step after its length, or its arguments, are libFuzzer's to change. */
static size_t inside(uint8_t *step, size_t length, size_t most)
{
    unsigned kind = (step[0] & 0x7F) % STEPS;
    size_t head = 1u + form[kind].arguments + 2u * form[kind].bytes, payload;
    if (length < head || length == 1)
        return length;
    if (!form[kind].bytes || dice(3) == 0) {
        if (form[kind].arguments)
            step[1 + dice(form[kind].arguments)] = (uint8_t)(dice(2) ? dice(8) : dice(256));
        return length;
    }
    if (most > head + 0xFFFF)
        most = head + 0xFFFF;
    payload = LLVMFuzzerMutate(step + head, length - head, most - head);
    step[head - 2] = (uint8_t)payload;
    step[head - 1] = (uint8_t)(payload >> 8);
    return head + payload;
}

/* `length` bytes at `at` give way to `count` others; the new size of everything. */
static size_t replace(uint8_t *data, size_t size, size_t at, size_t length, const uint8_t *with, size_t count)
{
    memmove(data + at + count, data + at + length, size - at - length);
    memcpy(data + at, with, count);
    return size - length + count;
}

size_t script_mutate(uint8_t *data, size_t size, size_t most, unsigned seed)
{
    size_t starts[MOST + 1], count = 0, at = 1, other, length, made;
    uint8_t *copy;
    state = seed;
    if (size < 2 || dice(4) == 0)
        return LLVMFuzzerMutate(data, size, most);
    while (at < size && count < MOST) {
        starts[count++] = at;
        at += step_length(data + at, data + size);
    }
    starts[count] = at;
    other = dice((unsigned)count);
    at = dice((unsigned)count);
    length = starts[at + 1] - starts[at];
    if ((copy = malloc(most + 64)) == NULL)
        return size;
    switch (dice(6)) {
    case 0: /* cut out */
        size = count > 1 ? replace(data, size, starts[at], length, copy, 0) : size;
        break;
    case 1: /* copied elsewhere */
        memcpy(copy, data + starts[at], length);
        if (size + length <= most)
            size = replace(data, size, starts[other], 0, copy, length);
        break;
    case 2: /* another there instead */
        made = starts[other + 1] - starts[other];
        memcpy(copy, data + starts[other], made);
        if (size - length + made <= most)
            size = replace(data, size, starts[at], length, copy, made);
        break;
    case 3:
        made = fresh(copy);
        if (size + made <= most)
            size = replace(data, size, starts[at], 0, copy, made);
        break;
    case 4:
        data[starts[at]] ^= ON;
        break;
    default:
        memcpy(copy, data + starts[at], length);
        made = inside(copy, length, length + (most - size));
        size = replace(data, size, starts[at], length, copy, made);
    }
    free(copy);
    return size;
}
