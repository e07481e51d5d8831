# Records that cross between the threads and Python: size, kind, then fields of eight bytes or length and bytes.
#
# Both ends are this process; nothing here is read from a peer.


cdef struct Batch:
    Buffer records
    size_t begin             # offset of the record that is being written, from the first byte of the buffer


cdef inline void batch_put(Batch *self, const void *data, size_t length) noexcept nogil:
    if buffer_append(&self.records, data, length) != 0:
        die(b"out of memory")


cdef inline void batch_number(Batch *self, uint64_t number) noexcept nogil:
    batch_put(self, &number, sizeof(number))


cdef inline void batch_bytes(Batch *self, const void *data, size_t length) noexcept nogil:
    batch_number(self, length)
    batch_put(self, data, length)


cdef inline void batch_text(Batch *self, const char *text) noexcept nogil:
    batch_bytes(self, text, strlen(text))


cdef inline void batch_begin(Batch *self, uint64_t kind) noexcept nogil:
    self.begin = self.records.length
    batch_number(self, 0)
    batch_number(self, kind)


cdef inline void batch_end(Batch *self) noexcept nogil:
    cdef uint64_t size = self.records.length - self.begin
    memcpy(<uint8_t *>buffer_start(&self.records) + self.begin, &size, sizeof(size))


cdef struct Cursor:
    const uint8_t *at
    const uint8_t *end


cdef inline uint64_t cursor_number(Cursor *self) noexcept nogil:
    cdef uint64_t number
    memcpy(&number, self.at, sizeof(number))
    self.at += sizeof(number)
    return number


cdef inline const char *cursor_bytes(Cursor *self, size_t *length) noexcept nogil:
    """Not terminated by a zero, valid as long as the batch."""
    cdef const char *found
    length[0] = cursor_number(self)
    found = <const char *>self.at
    self.at += length[0]
    return found


cdef inline char *cursor_text(Cursor *self) noexcept nogil:
    """A copy; `free` it."""
    cdef size_t length
    cdef const char *found = cursor_bytes(self, &length)
    return copy_text(found, length)


cdef inline bint cursor_record(Cursor *rest, Cursor *record) noexcept nogil:
    """The next record, its kind first; False at the end."""
    cdef uint64_t size
    if rest.at >= rest.end:
        return False
    memcpy(&size, rest.at, sizeof(size))
    record.at = rest.at + sizeof(size)
    record.end = rest.at + size
    rest.at += size
    return True


cdef struct Mail:
    # Batches on their way from one thread to another, under `lock`. The bell rings when the first one comes.
    pthread_mutex_t lock
    Buffer waiting
    uint64_t takes           # atomic
    int bell                 # eventfd


cdef inline void mail_send(Mail *self, Batch *batch) noexcept nogil:
    cdef uint64_t one = 1
    cdef bint first
    cdef Buffer kept
    if batch.records.length == 0:
        return
    pthread_mutex_lock(&self.lock)
    first = self.waiting.length == 0
    if first:  # nothing waits: the buffers are exchanged
        kept = self.waiting
        self.waiting = batch.records
        batch.records = kept
    elif buffer_append(&self.waiting, buffer_start(&batch.records), batch.records.length) != 0:
        die(b"out of memory")
    pthread_mutex_unlock(&self.lock)
    buffer_drop(&batch.records, batch.records.length)
    if first:
        write_(self.bell, &one, sizeof(one))


cdef inline void mail_take(Mail *self, Buffer *into) noexcept nogil:
    """Everything that waits, in exchange for `into`, which is empty. The bell is silent before they are taken, so that
    none is missed."""
    cdef uint64_t rings
    cdef Buffer taken
    read_(self.bell, &rings, sizeof(rings))
    pthread_mutex_lock(&self.lock)
    taken = self.waiting
    self.waiting = into[0]
    into[0] = taken
    atomic_set64(&self.takes, self.takes + 1, RELAXED)
    pthread_mutex_unlock(&self.lock)
