//! The exported functions: check, convert, call. What they call is tested where it lives.
//!
//! Every `pub fn` here is exported under its own name and every `pub const` struct is declared to
//! Python by gen.zig; orun/engine/_abi.py is generated from both.
const gen = @import("gen.zig");
const crc32c = @import("crc32c.zig");
const page_file = @import("page.zig");
const record = @import("record.zig");
const ring_file = @import("ring.zig");
const status_file = @import("status.zig");

const Status = status_file.Status;
pub const Cursor = ring_file.Cursor;
pub const Ring = ring_file.Ring;
pub const Producer = ring_file.Producer;
pub const Consumer = ring_file.Consumer;
pub const Entry = record.Entry;
pub const Summary = record.Summary;
pub const Page = page_file.Page;

const ok = code(.ok);
const bad = code(.invalid_argument);

fn code(status: Status) c_int {
    return @backingInt(status);
}

/// A number that changes whenever the declarations below change: the loader compares it.
pub fn orun_abi() callconv(.c) u32 {
    return gen.abi;
}

/// The declarations, as C; generate.py makes _abi.py of them.
pub fn orun_cdef() callconv(.c) [*:0]const u8 {
    return gen.cdef;
}

pub fn orun_crc32c(data: ?[*]const u8, size: usize, seed: u32) callconv(.c) u32 {
    const bytes = data orelse return seed;
    return crc32c.update(seed, bytes[0..size]);
}

/// One record into `out`; returns its size, 0 when `out` is too small.
pub fn orun_frame(
    out: ?[*]u8,
    out_size: usize,
    kind: u8,
    flags: u8,
    lsn: u64,
    ref: u64,
    epoch: u32,
    time_ms: u64,
    prev_crc: u32,
    payload: ?[*]const u8,
    payload_size: usize,
) callconv(.c) u64 {
    const to = out orelse return 0;
    const from = payload orelse return 0;
    if (payload_size > record.payload_max or kind >= 32) return 0;
    return record.write(to[0..out_size], .{
        .size = 0,
        .crc = 0,
        .lsn = lsn,
        .time_ms = time_ms,
        .ref = ref,
        .epoch = epoch,
        .payload_size = 0,
        .prev_crc = prev_crc,
        .kind = kind,
        .flags = flags,
    }, from[0..payload_size]);
}

/// Walk and verify records laid end to end. `chained`: the first must continue `prev_crc`.
pub fn orun_scan(
    data: ?[*]const u8,
    size: usize,
    chained: bool,
    prev_crc: u32,
    entries: ?[*]Entry,
    entries_max: usize,
    summary: ?*Summary,
) callconv(.c) c_int {
    const from = data orelse return bad;
    const out = summary orelse return bad;
    const list = entries orelse return bad;
    if (size > record.scan_size_max) return bad;
    const expected: record.Expected = .{ .prev_crc = if (chained) prev_crc else null };
    return code(record.scan(from[0..size], expected, list[0..entries_max], out));
}

/// `size` is that of the mapping in all that follow.
pub fn orun_ring_create(
    ring: ?*Ring,
    size: usize,
    epoch: u32,
    first_lsn: u64,
    prev_crc: u32,
) callconv(.c) c_int {
    const to = ring orelse return bad;
    if (size <= ring_file.header_size) return bad;
    return code(ring_file.create(to, size - ring_file.header_size, epoch, first_lsn, prev_crc));
}

pub fn orun_producer_open(ring: ?*Ring, size: usize, producer: ?*Producer) callconv(.c) c_int {
    const to = producer orelse return bad;
    return code(ring_file.openProducer(ring orelse return bad, size, to));
}

/// Returns the new record's LSN, or a status below zero. The kind is in the low byte of `what`, the
/// flags are in the next: each argument costs a caller in Python 40 ns.
pub fn orun_append(
    producer: ?*Producer,
    what: u16,
    ref: u64,
    payload: ?[*]const u8,
    payload_size: usize,
) callconv(.c) i64 {
    const to = producer orelse return bad;
    const from = payload orelse return bad;
    const kind: u8 = @truncate(what);
    const flags: u8 = @intCast(what >> 8);
    const status = ring_file.append(to, kind, flags, ref, from[0..payload_size]);
    if (status != .ok) return code(status);
    return @intCast(to.next_lsn - 1);
}

pub fn orun_claim_wake(producer: ?*Producer, waiting: bool) callconv(.c) bool {
    return ring_file.claimWake(producer orelse return false, waiting);
}

pub fn orun_consumer_open(ring: ?*Ring, size: usize, consumer: ?*Consumer) callconv(.c) c_int {
    const to = consumer orelse return bad;
    return code(ring_file.openConsumer(ring orelse return bad, size, to));
}

/// Bytes published and not yet read, or a status below zero.
pub fn orun_pending(consumer: ?*const Consumer) callconv(.c) i64 {
    var bytes: u64 = 0;
    const status = ring_file.pending(consumer orelse return bad, &bytes);
    if (status != .ok) return code(status);
    return @intCast(bytes);
}

pub fn orun_accept(
    consumer: ?*Consumer,
    copy: ?[*]const u8,
    size: usize,
    whole: bool,
    summary: ?*Summary,
) callconv(.c) c_int {
    const to = consumer orelse return bad;
    const from = copy orelse return bad;
    if (size > to.capacity) return bad;
    return code(ring_file.accept(to, from[0..size], whole, summary orelse return bad));
}

pub fn orun_release(consumer: ?*Consumer) callconv(.c) void {
    ring_file.release(consumer orelse return);
}

/// True: look again before sleeping.
pub fn orun_set_wake_mode(consumer: ?*Consumer, mode: u32) callconv(.c) bool {
    return ring_file.setWakeMode(consumer orelse return true, @fromBackingInt(mode));
}

pub fn orun_seal(consumer: ?*Consumer) callconv(.c) void {
    ring_file.seal(consumer orelse return);
}

pub fn orun_page_init(page: ?*Page, size: usize) callconv(.c) c_int {
    const to = page orelse return bad;
    if (size < @sizeOf(Page)) return bad;
    page_file.init(to);
    return ok;
}

pub fn orun_page_check(page: ?*const Page, size: usize) callconv(.c) c_int {
    return code(page_file.check(page orelse return bad, size));
}

pub fn orun_record_latency(page: ?*Page, ns: u64) callconv(.c) void {
    page_file.record(page orelse return, ns);
}

pub fn orun_quantile(page: ?*const Page, millionths: u32) callconv(.c) u64 {
    return page_file.quantile(page orelse return 0, @min(millionths, 1_000_000));
}

/// Long: returns when orun_ticker_stop is called on the same word.
pub fn orun_ticker_run(page: ?*Page, stop: ?*const u32, interval_ms: u32) callconv(.c) c_int {
    if (interval_ms == 0) return bad;
    page_file.tick(page orelse return bad, stop orelse return bad, interval_ms);
    return ok;
}

pub fn orun_ticker_stop(stop: ?*u32) callconv(.c) void {
    page_file.stopTicker(stop orelse return);
}
