//! What a call can answer. Append only: a number never changes its meaning, because libraries and
//! Python faces of different builds may meet in one process tree.

pub const Status = enum(c_int) {
    ok = 0,
    /// A null pointer, a length or a number outside its limits: the caller's mistake.
    invalid_argument = -1,
    /// The ring has no room; the consumer has to release some first.
    ring_full = -2,
    /// The consumer has sealed the ring, or another producer has claimed it.
    ring_fenced = -3,
    /// The payload would take more than half of the ring.
    record_too_large = -4,
    /// The data ends inside the record.
    record_cut = -5,
    /// The record's sizes contradict each other.
    record_size = -6,
    /// The record's bytes do not match its checksum.
    record_checksum = -7,
    /// The record's number does not follow its predecessor's.
    record_lsn = -8,
    /// The record was not written after the record that stands before it.
    record_chain = -9,
    /// Reserved bits are set: the record was written by a newer version.
    record_layout = -10,
    /// The record belongs to another epoch than its ring.
    record_epoch = -11,
    /// The memory does not begin with a ring's header, or the header is damaged.
    ring_header = -12,
    /// The ring was made by a newer version.
    ring_version = -13,
    /// Head and tail cannot both be right.
    ring_cursor = -14,
    /// The memory does not begin with a page's header.
    page_header = -15,
};
