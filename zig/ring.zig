//! The journal: a ring of records in a file that a worker and the recorder map. The worker appends
//! and survives as data when it is killed; the recorder copies records out, commits them, and only
//! then lets their room be used again.
//!
//! One producer and one consumer for life: a new worker gets a new ring with a higher epoch. Records
//! wrap byte by byte, so there is no filler to skip and a copy is two pieces at most.
//!
//! The order of stores is the protocol:
//! - `tail` is the only word that publishes; everything before it is whole.
//! - The consumer stores `sealed`, then reads `tail`; the producer stores `tail`, then reads
//!   `sealed`. All four are sequentially consistent, so either the append is refused or the drain
//!   that follows the seal sees the record. (Both may happen: it is then recorded, not acknowledged.)
//! - The same holds for `wake_mode` against `tail`, and against `wanted_lsn`.
//! Each side keeps what it knows in its own memory and checks every word that the other side wrote.
const std = @import("std");
const assert = std.debug.assert;
const clock = @import("clock.zig");
const crc32c = @import("crc32c.zig");
const record = @import("record.zig");
const Status = @import("status.zig").Status;

pub const magic: u64 = std.mem.readInt(u64, "orunring", .little);
pub const version = 1;
/// One page, so that the records start on a page of their own.
pub const header_size = 4096;
pub const capacity_min: u64 = 4096;
pub const capacity_max: u64 = 1 << 31;

pub const WakeMode = enum(u32) {
    /// The consumer will look again by itself.
    draining = 0,
    /// The consumer sleeps until it is woken: any append must do it.
    asleep = 1,
    /// The consumer gathers records for a while: only who waits for durability wakes it.
    pacing = 2,
    _,
};

/// Where the consumer stands, all three words at one moment.
pub const Cursor = extern struct {
    position: u64,
    next_lsn: u64,
    crc: u32,
    _reserved: u32,
};

pub const Ring = extern struct {
    // Written once, by the consumer when it makes the ring.
    magic: u64,
    version: u32,
    epoch: u32,
    capacity: u64,
    first_lsn: u64,
    prev_crc: u32,
    header_crc: u32,
    _reserved0: [24]u8,
    // Written by the producer.
    tail: u64,
    wanted_lsn: u64,
    claimed: u32,
    _reserved1: [44]u8,
    // Written by the consumer when it releases: two slots, so that a crash between words leaves one whole.
    cursors: [2]Cursor,
    active: u32,
    _reserved2: [12]u8,
    // Written by the consumer, read by the producer at every append; the cursors above move more often.
    // The producer takes `wake_mode` back to draining when it is the one to wake the consumer.
    durable_lsn: u64,
    checkpoint_lsn: u64,
    sealed: u32,
    wake_mode: u32,
    _reserved3: [40]u8,

    comptime {
        assert(@sizeOf(Ring) == 4 * 64);
        assert(@offsetOf(Ring, "tail") == 64);
        assert(@offsetOf(Ring, "cursors") == 128);
        assert(@offsetOf(Ring, "durable_lsn") == 192);
        assert(@sizeOf(Ring) <= header_size);
    }

    fn data(ring: *Ring) [*]u8 {
        return @as([*]u8, @ptrCast(ring)) + header_size;
    }

    fn staticCrc(ring: *const Ring) u32 {
        return crc32c.hash(std.mem.asBytes(ring)[0..@offsetOf(Ring, "header_crc")]);
    }
};

/// The producer's own memory.
pub const Producer = extern struct {
    /// Null once the mapping has gone.
    ring: ?*Ring,
    capacity: u64,
    tail: u64,
    /// The last head seen: the room is at least what it says.
    head: u64,
    next_lsn: u64,
    last_crc: u32,
    epoch: u32,
};

/// The consumer's own memory.
pub const Consumer = extern struct {
    ring: *Ring,
    capacity: u64,
    /// Released up to here.
    head: u64,
    /// Copied out and verified up to here.
    read: u64,
    next_lsn: u64,
    last_crc: u32,
    epoch: u32,
};

pub fn create(ring: *Ring, capacity: u64, epoch: u32, first_lsn: u64, prev_crc: u32) Status {
    if (capacity < capacity_min or capacity > capacity_max) return .invalid_argument;
    if (!std.math.isPowerOfTwo(capacity)) return .invalid_argument;
    if (first_lsn == 0) return .invalid_argument;
    ring.* = std.mem.zeroes(Ring);
    ring.magic = magic;
    ring.version = version;
    ring.epoch = epoch;
    ring.capacity = capacity;
    ring.first_lsn = first_lsn;
    ring.prev_crc = prev_crc;
    ring.header_crc = ring.staticCrc();
    for (&ring.cursors) |*cursor| cursor.* = .{
        .position = 0,
        .next_lsn = first_lsn,
        .crc = prev_crc,
        ._reserved = 0,
    };
    return checkHeader(ring, header_size + capacity);
}

/// `size` is the size of the mapped file.
fn checkHeader(ring: *const Ring, size: u64) Status {
    if (size < header_size) return .ring_header;
    if (ring.magic != magic) return .ring_header;
    if (ring.version > version) return .ring_version;
    if (ring.header_crc != ring.staticCrc()) return .ring_header;
    if (ring.capacity < capacity_min or ring.capacity > capacity_max) return .ring_header;
    if (!std.math.isPowerOfTwo(ring.capacity)) return .ring_header;
    if (size != header_size + ring.capacity) return .ring_header;
    return .ok;
}

pub fn openProducer(ring: *Ring, size: u64, producer: *Producer) Status {
    const status = checkHeader(ring, size);
    if (status != .ok) return status;
    // A ring has one producer in its life; whoever comes second is a zombie or a mistake.
    if (@cmpxchgStrong(u32, &ring.claimed, 0, 1, .seq_cst, .seq_cst) != null) return .ring_fenced;
    if (@atomicLoad(u32, &ring.sealed, .seq_cst) != 0) return .ring_fenced;
    if (ring.tail != 0) return .ring_cursor;
    producer.* = .{
        .ring = ring,
        .capacity = ring.capacity,
        .tail = 0,
        .head = 0,
        .next_lsn = ring.first_lsn,
        .last_crc = ring.prev_crc,
        .epoch = ring.epoch,
    };
    return .ok;
}

/// Frame one record and publish it. On ring_fenced the record may be in the ring, but must not be
/// acknowledged; the producer is at its end.
pub fn append(producer: *Producer, kind: u8, flags: u8, ref: u64, payload: []const u8) Status {
    const ring = producer.ring orelse return .invalid_argument;
    assert(producer.capacity >= capacity_min);
    assert(producer.tail % record.alignment == 0);
    if (kind >= 32) return .invalid_argument;
    if (payload.len > payloadMax(producer.capacity)) return .record_too_large;
    if (@atomicLoad(u32, &ring.sealed, .acquire) != 0) return .ring_fenced;
    const size = record.sizeFor(payload.len);
    if (producer.tail + size - producer.head > producer.capacity) {
        const head = loadHead(ring);
        if (head < producer.head or head > producer.tail) return .ring_cursor;
        producer.head = head;
        if (producer.tail + size - head > producer.capacity) return .ring_full;
    }
    var header: record.Header = .{
        .size = 0,
        .crc = 0,
        .lsn = producer.next_lsn,
        .time_ms = clock.unixMs(),
        .ref = ref,
        .epoch = producer.epoch,
        .payload_size = 0,
        .prev_crc = producer.last_crc,
        .kind = kind,
        .flags = flags,
    };
    const crc = record.seal(&header, payload);
    assert(header.size == size);
    put(ring.data()[0..@intCast(producer.capacity)], producer.tail, &header, payload);
    // Publishes the record: pairs with the load of tail in pending().
    @atomicStore(u64, &ring.tail, producer.tail + size, .seq_cst);
    // Pairs with seal(): the store above and this load must not change places.
    if (@atomicLoad(u32, &ring.sealed, .seq_cst) != 0) return .ring_fenced;
    producer.tail += size;
    producer.next_lsn += 1;
    producer.last_crc = crc;
    return .ok;
}

pub fn payloadMax(capacity: u64) u64 {
    return capacity / 2 - record.header_size;
}

/// The producer asks, after an append, whether it must wake the consumer. It is told so once per
/// sleep: many appends make one system call. `waiting`: somebody waits for the last record to be durable.
pub fn claimWake(producer: *Producer, waiting: bool) bool {
    const ring = producer.ring orelse return false;
    // Pairs with setWakeMode(): either it sees what is wanted, or we see its mode.
    if (waiting) @atomicStore(u64, &ring.wanted_lsn, producer.next_lsn - 1, .seq_cst);
    const mode: WakeMode = @fromBackingInt(@atomicLoad(u32, &ring.wake_mode, .seq_cst));
    const needed = switch (mode) {
        .asleep => true,
        .pacing => waiting,
        else => false,
    };
    if (!needed) return false;
    const draining = @backingInt(WakeMode.draining);
    return @atomicRmw(u32, &ring.wake_mode, .Xchg, draining, .seq_cst) != draining;
}

fn put(data: []u8, tail: u64, header: *const record.Header, payload: []const u8) void {
    const at: usize = @intCast(tail & (data.len - 1));
    if (at + header.size <= data.len) {
        const out = data[at..][0..header.size];
        @memcpy(out[0..record.header_size], std.mem.asBytes(header));
        @memcpy(out[record.header_size..][0..payload.len], payload);
        @memset(out[record.header_size + payload.len ..], 0);
        return;
    }
    const padding: [record.alignment]u8 = @splat(0);
    var position = at;
    for ([_][]const u8{
        std.mem.asBytes(header),
        payload,
        padding[0 .. header.size - record.header_size - payload.len],
    }) |part| {
        const first = @min(part.len, data.len - position);
        @memcpy(data[position..][0..first], part[0..first]);
        @memcpy(data[0 .. part.len - first], part[first..]);
        position = (position + part.len) & (data.len - 1);
    }
}

fn loadHead(ring: *const Ring) u64 {
    const active = @atomicLoad(u32, &ring.active, .acquire) & 1;
    return @atomicLoad(u64, &ring.cursors[active].position, .acquire);
}

pub fn openConsumer(ring: *Ring, size: u64, consumer: *Consumer) Status {
    const status = checkHeader(ring, size);
    if (status != .ok) return status;
    const cursor = ring.cursors[@atomicLoad(u32, &ring.active, .acquire) & 1];
    const tail = @atomicLoad(u64, &ring.tail, .acquire);
    if (tail < cursor.position or tail - cursor.position > ring.capacity) return .ring_cursor;
    consumer.* = .{
        .ring = ring,
        .capacity = ring.capacity,
        .head = cursor.position,
        .read = cursor.position,
        .next_lsn = cursor.next_lsn,
        .last_crc = cursor.crc,
        .epoch = ring.epoch,
    };
    return .ok;
}

/// Bytes published and not yet read, in `bytes`.
pub fn pending(consumer: *const Consumer, bytes: *u64) Status {
    // Pairs with the publishing store in append(), and with sealed in seal().
    const tail = @atomicLoad(u64, &consumer.ring.tail, .seq_cst);
    bytes.* = 0;
    if (tail % record.alignment != 0) return .ring_cursor;
    if (tail < consumer.read or tail - consumer.head > consumer.capacity) return .ring_cursor;
    bytes.* = tail - consumer.read;
    return .ok;
}

/// Check records that were copied out from where the consumer reads, and move it behind the good
/// ones. `whole`: the copy ends where the ring does, so a record that is cut off is damage.
pub fn accept(consumer: *Consumer, copy: []const u8, whole: bool, summary: *record.Summary) Status {
    assert(copy.len <= consumer.capacity);
    const expected: record.Expected = .{
        .lsn = consumer.next_lsn,
        .prev_crc = consumer.last_crc,
        .epoch = consumer.epoch,
    };
    var status = record.scan(copy, expected, &.{}, summary);
    if (status == .record_cut and !whole and summary.count > 0) status = .ok;
    if (summary.count > 0) {
        consumer.read += summary.size;
        consumer.next_lsn = summary.last_lsn + 1;
        consumer.last_crc = summary.last_crc;
    }
    return status;
}

/// What was read is safe elsewhere: its room may be used again.
pub fn release(consumer: *Consumer) void {
    const ring = consumer.ring;
    assert(consumer.read >= consumer.head);
    assert(consumer.read - consumer.head <= consumer.capacity);
    if (consumer.read == consumer.head) return;
    const slot = (@atomicLoad(u32, &ring.active, .monotonic) & 1) ^ 1;
    const cursor = &ring.cursors[slot];
    cursor.next_lsn = consumer.next_lsn;
    cursor.crc = consumer.last_crc;
    // Release: the copy that we took of these bytes happened before the producer may overwrite them.
    @atomicStore(u64, &cursor.position, consumer.read, .release);
    @atomicStore(u32, &ring.active, slot, .release);
    consumer.head = consumer.read;
}

/// Say how the consumer is to be woken. True: sleeping now would miss something, look again first.
/// While pacing only a waiter counts, for records are left lying then on purpose.
pub fn setWakeMode(consumer: *Consumer, mode: WakeMode) bool {
    const ring = consumer.ring;
    @atomicStore(u32, &ring.wake_mode, @backingInt(mode), .seq_cst);
    // Pairs with claimWake(): the store above and these loads must not change places.
    if (mode == .pacing) return @atomicLoad(u64, &ring.wanted_lsn, .seq_cst) >= consumer.next_lsn;
    return @atomicLoad(u64, &ring.tail, .seq_cst) != consumer.read;
}

/// After this no append is acknowledged any more; what was, the next pending() sees.
pub fn seal(consumer: *Consumer) void {
    @atomicStore(u32, &consumer.ring.sealed, 1, .seq_cst);
}

test {
    _ = @import("ring_test.zig");
}
