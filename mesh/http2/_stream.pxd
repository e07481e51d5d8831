"""What a session is built of: byte buffers, streams, the table that finds them by id and the two queues they wait in.

Plain C without the GIL; every function that allocates answers -1 when there is no memory, and changes nothing then.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memmove


cdef struct Buffer:
    uint8_t *bytes
    size_t head      # first byte not yet taken
    size_t length    # bytes from head on
    size_t capacity


cdef inline const uint8_t *buffer_start(Buffer *self) noexcept nogil:
    return self.bytes + self.head


cdef inline void buffer_free(Buffer *self) noexcept nogil:
    free(self.bytes)
    self.bytes = NULL
    self.head = self.length = self.capacity = 0


cdef inline int buffer_reserve(Buffer *self, size_t more) noexcept nogil:
    """Room for `more` bytes after the last one. Bytes move only when at least half of the buffer was taken."""
    cdef size_t capacity
    cdef uint8_t *grown
    if self.head + self.length + more <= self.capacity:
        return 0
    if self.head >= self.length and self.length + more <= self.capacity:
        memmove(self.bytes, self.bytes + self.head, self.length)
        self.head = 0
        return 0
    capacity = max(self.capacity * 2, <size_t>512)
    while capacity < self.head + self.length + more:
        capacity *= 2
    grown = <uint8_t *>realloc(self.bytes, capacity)
    if grown == NULL:
        return -1
    self.bytes = grown
    self.capacity = capacity
    return 0


cdef inline int buffer_append(Buffer *self, const void *data, size_t length) noexcept nogil:
    if length == 0:
        return 0
    if buffer_reserve(self, length) != 0:
        return -1
    memcpy(self.bytes + self.head + self.length, data, length)
    self.length += length
    return 0


cdef inline void buffer_drop(Buffer *self, size_t length) noexcept nogil:
    """Forget the first bytes. An empty buffer that had grown gives its memory back: idle streams cost little."""
    self.head += length
    self.length -= length
    if self.length == 0:
        self.head = 0
        if self.capacity > 16384:
            buffer_free(self)


cdef struct Queue:
    Stream *first
    Stream *last


cdef struct Stream:
    int32_t id
    Buffer outbound          # payload not yet framed
    Buffer trailers          # nghttp2-ready fields, kept until the payload has left (see fields_append)
    size_t trailer_count
    size_t unconsumed        # delivered to the application and not yet consumed
    int32_t window_wanted    # grow() before the request has left; 0: none
    size_t said              # payload framed in this turn
    bint responded           # server: final headers submitted; client: always
    bint ending              # END_STREAM follows what is buffered
    bint ended               # END_STREAM is framed
    bint filled              # was above the low water mark; the next time below is worth an event
    bint reset_here          # reset() was called
    bint reset_seen          # the peer's RST_STREAM was reported
    Queue *queue             # where it waits: ready, blocked or NULL
    Stream *previous
    Stream *following
    Stream *chained          # next in the table's bucket


cdef inline void queue_remove(Stream *stream) noexcept nogil:
    cdef Queue *queue = stream.queue
    if queue == NULL:
        return
    if stream.previous != NULL:
        stream.previous.following = stream.following
    else:
        queue.first = stream.following
    if stream.following != NULL:
        stream.following.previous = stream.previous
    else:
        queue.last = stream.previous
    stream.previous = stream.following = NULL
    stream.queue = NULL


cdef inline void queue_push(Queue *queue, Stream *stream) noexcept nogil:
    queue_remove(stream)
    stream.queue = queue
    stream.previous = queue.last
    if queue.last != NULL:
        queue.last.following = stream
    else:
        queue.first = stream
    queue.last = stream


cdef inline void queue_push_first(Queue *queue, Stream *stream) noexcept nogil:
    queue_remove(stream)
    stream.queue = queue
    stream.following = queue.first
    if queue.first != NULL:
        queue.first.previous = stream
    else:
        queue.last = stream
    queue.first = stream


cdef struct Table:
    Stream **buckets
    size_t size      # a power of two
    size_t count


cdef inline Stream *table_find(const Table *self, int32_t id) noexcept nogil:
    cdef Stream *stream
    if self.count == 0:
        return NULL
    stream = self.buckets[(<uint32_t>id >> 1) & (self.size - 1)]
    while stream != NULL and stream.id != id:
        stream = stream.chained
    return stream


cdef inline int table_grow(Table *self) noexcept nogil:
    cdef size_t size = max(self.size * 2, <size_t>16)
    cdef size_t i, bucket
    cdef Stream *stream
    cdef Stream *after
    cdef Stream **buckets = <Stream **>calloc(size, sizeof(Stream *))
    if buckets == NULL:
        return -1
    for i in range(self.size):
        stream = self.buckets[i]
        while stream != NULL:
            after = stream.chained
            bucket = (<uint32_t>stream.id >> 1) & (size - 1)
            stream.chained = buckets[bucket]
            buckets[bucket] = stream
            stream = after
    free(self.buckets)
    self.buckets = buckets
    self.size = size
    return 0


cdef inline Stream *table_add(Table *self, int32_t id) noexcept nogil:
    """A new stream of this id, or NULL without memory."""
    cdef Stream *stream
    cdef size_t bucket
    if self.count >= self.size and table_grow(self) != 0:
        return NULL
    stream = <Stream *>calloc(1, sizeof(Stream))
    if stream == NULL:
        return NULL
    stream.id = id
    bucket = (<uint32_t>id >> 1) & (self.size - 1)
    stream.chained = self.buckets[bucket]
    self.buckets[bucket] = stream
    self.count += 1
    return stream


cdef inline void stream_free(Stream *stream) noexcept nogil:
    queue_remove(stream)
    buffer_free(&stream.outbound)
    buffer_free(&stream.trailers)
    free(stream)


cdef inline void table_remove(Table *self, Stream *stream) noexcept nogil:
    cdef Stream **at = &self.buckets[(<uint32_t>stream.id >> 1) & (self.size - 1)]
    while at[0] != stream:
        at = &at[0].chained
    at[0] = stream.chained
    self.count -= 1
    stream_free(stream)


cdef inline void table_free(Table *self) noexcept nogil:
    cdef size_t i
    for i in range(self.size):
        while self.buckets[i] != NULL:
            table_remove(self, self.buckets[i])
    free(self.buckets)
    self.buckets = NULL
    self.size = self.count = 0


# Header fields in one piece of memory: for each, two uint32 lengths, then name and value.


cdef inline int fields_append(
    Buffer *into, const uint8_t *name, size_t name_length, const uint8_t *value, size_t value_length
) noexcept nogil:
    cdef uint32_t lengths[2]
    if buffer_reserve(into, sizeof(lengths) + name_length + value_length) != 0:
        return -1
    lengths[0] = <uint32_t>name_length
    lengths[1] = <uint32_t>value_length
    buffer_append(into, lengths, sizeof(lengths))
    buffer_append(into, name, name_length)
    buffer_append(into, value, value_length)
    return 0
