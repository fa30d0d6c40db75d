//! A page that an agent's worker shares with the runtime: liveness counters, figures and a latency
//! histogram. Each slot has one writer, so plain 64-bit stores are enough and nobody ever waits.
const std = @import("std");
const assert = std.debug.assert;
const linux = std.os.linux;
const clock = @import("clock.zig");
const Status = @import("status.zig").Status;

pub const magic: u64 = std.mem.readInt(u64, "orunpage", .little);
pub const version = 1;

/// 32 buckets for each power of two: a quantile is at most 1/32 too high.
const sub_bits = 5;
const sub_count = 1 << sub_bits;
pub const bucket_count = (64 - sub_bits + 1) * sub_count;

pub const Page = extern struct {
    magic: u64,
    version: u64,
    _reserved: [6]u64,
    // The slots, in the order in which orun/engine/pages.py documents them. Append only.
    native_ns: u64,
    loop_ns: u64,
    handler_start_ns: u64,
    handler_lsn: u64,
    handler_deadline_ns: u64,
    phase: u64,
    progress_done: u64,
    progress_total: u64,
    pid: u64,
    requests: u64,
    errors: u64,
    queue_depth: u64,
    in_flight: u64,
    last_lsn: u64,
    busy: u64,
    spare: [101]u64,
    latency_count: u64,
    latency_sum: u64,
    latency_min: u64,
    latency_max: u64,
    latency_buckets: [bucket_count]u64,

    comptime {
        assert(@offsetOf(Page, "native_ns") == 64);
        assert(@offsetOf(Page, "latency_count") == 992);
        assert(@offsetOf(Page, "latency_buckets") == 1024);
        assert(@sizeOf(Page) == 16384);
    }
};

pub fn init(page: *Page) void {
    page.* = std.mem.zeroes(Page);
    page.latency_min = std.math.maxInt(u64);
    page.version = version;
    page.magic = magic;
}

pub fn check(page: *const Page, size: u64) Status {
    if (size < @sizeOf(Page)) return .page_header;
    if (page.magic != magic or page.version != version) return .page_header;
    return .ok;
}

fn bucketOf(value: u64) usize {
    if (value < sub_count) return @intCast(value);
    const shift: u6 = @intCast(63 - @clz(value) - sub_bits);
    const sub = (value >> shift) & (sub_count - 1);
    return (@as(usize, shift) + 1) * sub_count + @as(usize, @intCast(sub));
}

/// The largest value that is counted in this bucket.
fn bucketMax(bucket: usize) u64 {
    assert(bucket < bucket_count);
    if (bucket < sub_count) return bucket;
    const shift: u6 = @intCast(@divFloor(bucket, sub_count) - 1);
    const base: u64 = sub_count + bucket % sub_count;
    return (base << shift) + ((@as(u64, 1) << shift) - 1);
}

/// Count one latency. Atomic additions, because a reader may look at any moment and a second thread
/// of the same process may record too.
pub fn record(page: *Page, value: u64) void {
    _ = @atomicRmw(u64, &page.latency_buckets[bucketOf(value)], .Add, 1, .monotonic);
    _ = @atomicRmw(u64, &page.latency_count, .Add, 1, .monotonic);
    _ = @atomicRmw(u64, &page.latency_sum, .Add, value, .monotonic);
    _ = @atomicRmw(u64, &page.latency_max, .Max, value, .monotonic);
    _ = @atomicRmw(u64, &page.latency_min, .Min, value, .monotonic);
}

/// The value that `millionths` of all recorded ones do not exceed; 0 when there is none.
pub fn quantile(page: *const Page, millionths: u64) u64 {
    assert(millionths <= 1_000_000);
    const count = @atomicLoad(u64, &page.latency_count, .monotonic);
    const max = @atomicLoad(u64, &page.latency_max, .monotonic);
    if (count == 0) return 0;
    // In two parts, because count * millionths may not fit.
    const parts = @divFloor(count, 1_000_000) * millionths;
    const wanted = @max(1, parts + @divCeil((count % 1_000_000) * millionths, 1_000_000));
    var seen: u64 = 0;
    for (&page.latency_buckets, 0..) |*bucket, i| {
        seen += @atomicLoad(u64, bucket, .monotonic);
        if (seen >= wanted) return @min(bucketMax(i), max);
    }
    return max;
}

/// Store the time every `interval_ms` until `stop` is set. It needs no GIL, so it tells a process that
/// is frozen from one whose Python code does not come to an end. `stop` is the process's own word, not
/// one of the page: during a reload two processes write to one page.
pub fn tick(page: *Page, stop: *const u32, interval_ms: u32) void {
    assert(interval_ms > 0);
    const pause: linux.timespec = .{
        .sec = interval_ms / std.time.ms_per_s,
        .nsec = @as(isize, interval_ms % std.time.ms_per_s) * std.time.ns_per_ms,
    };
    while (@atomicLoad(u32, stop, .acquire) == 0) {
        @atomicStore(u64, &page.native_ns, clock.monotonicNs(), .release);
        const rc = linux.futex_4arg(stop, .{ .cmd = .WAIT, .private = true }, 0, &pause);
        switch (linux.errno(rc)) {
            .SUCCESS, .AGAIN, .INTR, .TIMEDOUT => {},
            else => unreachable, // the address is mapped and aligned, the timeout is in range
        }
    }
}

pub fn stopTicker(stop: *u32) void {
    @atomicStore(u32, stop, 1, .release);
    const waiters_max = 1;
    const rc = linux.futex_3arg(stop, .{ .cmd = .WAKE, .private = true }, waiters_max);
    assert(linux.errno(rc) == .SUCCESS);
}

test "every value is in the bucket that claims it" {
    var value: u64 = 0;
    while (value < 1 << 40) : (value = value + 1 + @divFloor(value, 97)) {
        const bucket = bucketOf(value);
        try std.testing.expect(bucketMax(bucket) >= value);
        try std.testing.expect(bucketMax(bucket) - value <= @divFloor(value, sub_count));
        if (bucket > 0) try std.testing.expect(bucketMax(bucket - 1) < value);
    }
    try std.testing.expectEqual(bucket_count - 1, bucketOf(std.math.maxInt(u64)));
    try std.testing.expectEqual(@as(u64, std.math.maxInt(u64)), bucketMax(bucket_count - 1));
}

test "quantiles of a known distribution" {
    var page: Page = undefined;
    init(&page);
    try std.testing.expectEqual(@as(u64, 0), quantile(&page, 500_000));
    for (1..1001) |i| record(&page, i * 1000);
    const median = quantile(&page, 500_000);
    try std.testing.expect(median >= 500_000 and median <= 516_000);
    try std.testing.expectEqual(@as(u64, 1_000_000), quantile(&page, 1_000_000));
    try std.testing.expectEqual(@as(u64, 1000), page.latency_min);
    try std.testing.expect(quantile(&page, 0) >= 1000);
}

test "the ticker ticks until it is stopped" {
    var page: Page = undefined;
    init(&page);
    var stop: u32 = 0;
    const thread = try std.Thread.spawn(.{}, tick, .{ &page, &stop, 1 });
    const first = while (true) {
        const seen = @atomicLoad(u64, &page.native_ns, .acquire);
        if (seen != 0) break seen;
    };
    while (@atomicLoad(u64, &page.native_ns, .acquire) == first) {}
    stopTicker(&stop);
    thread.join();
    try std.testing.expectEqual(Status.ok, check(&page, @sizeOf(Page)));
    try std.testing.expectEqual(Status.page_header, check(&page, @sizeOf(Page) - 1));
}
