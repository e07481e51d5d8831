#include <stddef.h>
#include <stdint.h>

/* The new size; at most `most`. */
size_t script_mutate(uint8_t *data, size_t size, size_t most, unsigned seed);
