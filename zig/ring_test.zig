//! The ring against a model: random operations from a seed, every answer predicted by a list.
const std = @import("std");
const testing = std.testing;
const record = @import("record.zig");
const ring_file = @import("ring.zig");
const Ring = ring_file.Ring;
const Status = @import("status.zig").Status;

const capacity = ring_file.capacity_min;
const Memory = struct {
    bytes: [ring_file.header_size + capacity]u8 align(64),

    fn ring(memory: *Memory) *Ring {
        return @ptrCast(&memory.bytes);
    }
};

/// A ring with both ends, and a copy out of it as the Python face does it.
const Fixture = struct {
    memory: *Memory,
    producer: ring_file.Producer = undefined,
    consumer: ring_file.Consumer = undefined,
    copy: [capacity]u8 = undefined,

    fn init(memory: *Memory) !Fixture {
        try testing.expectEqual(Status.ok, ring_file.create(memory.ring(), capacity, 5, 100, 77));
        var fixture: Fixture = .{ .memory = memory };
        try testing.expectEqual(Status.ok, fixture.openConsumer());
        const status = ring_file.openProducer(memory.ring(), memory.bytes.len, &fixture.producer);
        try testing.expectEqual(Status.ok, status);
        return fixture;
    }

    fn openConsumer(fixture: *Fixture) Status {
        return ring_file.openConsumer(fixture.memory.ring(), fixture.memory.bytes.len, &fixture.consumer);
    }

    fn drain(fixture: *Fixture, limit: u64, summary: *record.Summary) Status {
        var bytes: u64 = 0;
        summary.* = .{};
        const status = ring_file.pending(&fixture.consumer, &bytes);
        if (status != .ok) return status;
        const size: usize = @intCast(@min(bytes, limit));
        const data = fixture.memory.bytes[ring_file.header_size..];
        for (fixture.copy[0..size], 0..) |*byte, i| {
            byte.* = data[@intCast((fixture.consumer.read + i) & (capacity - 1))];
        }
        const copy = fixture.copy[0..size];
        return ring_file.accept(&fixture.consumer, copy, size == bytes, summary);
    }
};

fn fill(payload: []u8, lsn: u64) void {
    for (payload, 0..) |*byte, i| byte.* = @truncate(lsn *% 7 +% i);
}

/// `source` gives numbers: a generator with a seed, or the fuzzer.
fn runModel(source: anytype, steps_max: usize) !void {
    var memory: Memory = undefined;
    var f = try Fixture.init(&memory);
    var next_lsn: u64 = 100;
    var drained_lsn: u64 = 100; // first not drained
    var sizes: [1 << 12]u16 = undefined;
    var used: u64 = 0; // bytes not released
    var read: u64 = 0; // of these, drained
    for (0..steps_max) |_| switch (source.below(8)) {
        0...3 => {
            const largest = source.below(8) == 0;
            const size = source.below(if (largest) ring_file.payloadMax(capacity) + 2 else 300);
            var payload: [capacity]u8 = undefined;
            fill(payload[0..size], next_lsn);
            const status = ring_file.append(&f.producer, 3, 1, next_lsn - 1, payload[0..size]);
            if (size > ring_file.payloadMax(capacity)) {
                try testing.expectEqual(Status.record_too_large, status);
            } else if (used + record.sizeFor(size) > capacity) {
                try testing.expectEqual(Status.ring_full, status);
            } else {
                try testing.expectEqual(Status.ok, status);
                sizes[@intCast(next_lsn % sizes.len)] = @intCast(size);
                used += record.sizeFor(size);
                next_lsn += 1;
            }
        },
        4, 5 => {
            var summary: record.Summary = undefined;
            const whole = source.below(2) == 0;
            const limit = if (whole) capacity else capacity / 2;
            try testing.expectEqual(Status.ok, f.drain(limit, &summary));
            var entries: [100]record.Entry = undefined;
            var again: record.Summary = undefined;
            const copy = f.copy[0..@intCast(summary.size)];
            try testing.expectEqual(Status.ok, record.scan(copy, .{}, &entries, &again));
            for (entries[0..@intCast(summary.count)], drained_lsn..) |entry, lsn| {
                try testing.expectEqual(lsn, entry.lsn);
                try testing.expectEqual(lsn - 1, entry.ref);
                var payload: [capacity]u8 = undefined;
                const size = sizes[@intCast(lsn % sizes.len)];
                fill(payload[0..size], lsn);
                const seen = copy[entry.payload_start..entry.payload_end];
                try testing.expectEqualSlices(u8, payload[0..size], seen);
            }
            drained_lsn += summary.count;
            read += summary.size;
            if (whole) try testing.expectEqual(next_lsn, drained_lsn);
            if (drained_lsn < next_lsn) try testing.expect(summary.count > 0);
        },
        6 => {
            ring_file.release(&f.consumer);
            used -= read;
            read = 0;
        },
        7 => { // the consumer crashes: what was not released is read again
            if (source.below(4) != 0) continue;
            for (0..64) |_| { // one record at a time back to the head
                if (read == 0) break;
                drained_lsn -= 1;
                read -= record.sizeFor(sizes[@intCast(drained_lsn % sizes.len)]);
            }
            try testing.expectEqual(@as(u64, 0), read);
            try testing.expectEqual(Status.ok, f.openConsumer());
            try testing.expectEqual(drained_lsn, f.consumer.next_lsn);
        },
        else => unreachable, // below(8)
    };
}

const Seeded = struct {
    random: std.Random,

    fn below(source: Seeded, limit: u64) usize {
        return @intCast(source.random.uintLessThan(u64, limit));
    }
};

const Fuzzed = struct {
    smith: *testing.Smith,

    fn below(source: Fuzzed, limit: u64) usize {
        return @intCast(source.smith.valueRangeAtMost(u64, 0, limit - 1));
    }
};

test "the ring agrees with its model, over 200 seeds" {
    for (0..200) |seed| {
        var prng: std.Random.DefaultPrng = .init(seed);
        runModel(Seeded{ .random = prng.random() }, 400) catch |failure| {
            std.debug.print("seed {d}\n", .{seed});
            return failure;
        };
    }
}

fn fuzzOne(_: void, smith: *testing.Smith) !void {
    try runModel(Fuzzed{ .smith = smith }, 200);
}

test "the ring agrees with its model, fuzzed" {
    try testing.fuzz({}, fuzzOne, .{});
}

test "a full ring refuses, and never overwrites" {
    var memory: Memory = undefined;
    var f = try Fixture.init(&memory);
    var summary: record.Summary = undefined;
    const half: [ring_file.payloadMax(capacity)]u8 = @splat(1);
    try testing.expectEqual(Status.ok, ring_file.append(&f.producer, 1, 0, 0, &half));
    try testing.expectEqual(Status.ok, ring_file.append(&f.producer, 1, 0, 0, &half));
    try testing.expectEqual(Status.ring_full, ring_file.append(&f.producer, 1, 0, 0, ""));
    try testing.expectEqual(Status.ok, f.drain(capacity, &summary));
    try testing.expectEqual(Status.ring_full, ring_file.append(&f.producer, 1, 0, 0, ""));
    ring_file.release(&f.consumer);
    try testing.expectEqual(Status.ok, ring_file.append(&f.producer, 1, 0, 0, &half));
}

test "every flipped byte of a published record is seen, and what stands before it is kept" {
    var memory: Memory = undefined;
    var f = try Fixture.init(&memory);
    var summary: record.Summary = undefined;
    // The second record wraps round the end of the ring.
    var payload: [ring_file.payloadMax(capacity)]u8 = @splat(9);
    for (0..2) |_| {
        try testing.expectEqual(Status.ok, ring_file.append(&f.producer, 1, 0, 0, payload[0..1900]));
        try testing.expectEqual(Status.ok, f.drain(capacity, &summary));
        ring_file.release(&f.consumer);
    }
    try testing.expectEqual(Status.ok, ring_file.append(&f.producer, 1, 0, 0, payload[0..10]));
    const second = f.producer.tail;
    try testing.expectEqual(Status.ok, ring_file.append(&f.producer, 1, 0, 0, payload[0..300]));
    try testing.expect(second < capacity and f.producer.tail > capacity);
    for (f.consumer.read..f.producer.tail) |position| {
        const byte = &memory.bytes[@intCast(ring_file.header_size + (position & (capacity - 1)))];
        byte.* ^= 0x10;
        defer byte.* ^= 0x10;
        try testing.expectEqual(Status.ok, f.openConsumer());
        try testing.expect(f.drain(capacity, &summary) != .ok);
        try testing.expectEqual(@as(u64, if (position < second) 0 else 1), summary.count);
    }
}

test "a header that is not ours is refused" {
    var memory: Memory = undefined;
    var f = try Fixture.init(&memory);
    for (0..@offsetOf(Ring, "header_crc") + 4) |i| {
        memory.bytes[i] ^= 1;
        defer memory.bytes[i] ^= 1;
        try testing.expect(f.openConsumer() != .ok);
    }
    try testing.expectEqual(Status.ok, f.openConsumer());
    const short = memory.bytes.len - 1;
    try testing.expectEqual(Status.ring_header, ring_file.openConsumer(memory.ring(), short, &f.consumer));
    memory.ring().tail = 8 + capacity;
    try testing.expectEqual(Status.ring_cursor, f.openConsumer());
    for ([_]u64{ 0, 1000, 2048, 3 << 12, 1 << 32 }) |bad| {
        try testing.expectEqual(Status.invalid_argument, ring_file.create(memory.ring(), bad, 1, 1, 0));
    }
}

test "a second producer is a zombie" {
    var memory: Memory = undefined;
    var f = try Fixture.init(&memory);
    const status = ring_file.openProducer(memory.ring(), memory.bytes.len, &f.producer);
    try testing.expectEqual(Status.ring_fenced, status);
}

test "who must wake the consumer is told once" {
    var memory: Memory = undefined;
    var f = try Fixture.init(&memory);
    var summary: record.Summary = undefined;
    try testing.expect(!ring_file.setWakeMode(&f.consumer, .asleep));
    try testing.expectEqual(Status.ok, ring_file.append(&f.producer, 1, 0, 0, "x"));
    try testing.expect(ring_file.claimWake(&f.producer, false));
    try testing.expect(!ring_file.claimWake(&f.producer, true));
    try testing.expect(ring_file.setWakeMode(&f.consumer, .asleep)); // a record is there
    try testing.expectEqual(Status.ok, f.drain(capacity, &summary));
    try testing.expect(!ring_file.setWakeMode(&f.consumer, .pacing)); // the waiter has been served
    try testing.expectEqual(Status.ok, ring_file.append(&f.producer, 1, 0, 0, "y"));
    try testing.expect(!ring_file.claimWake(&f.producer, false));
    try testing.expect(!ring_file.setWakeMode(&f.consumer, .pacing)); // nobody waits
    try testing.expect(ring_file.claimWake(&f.producer, true));
    try testing.expect(ring_file.setWakeMode(&f.consumer, .pacing)); // somebody does
}

const Race = struct {
    fixture: *Fixture,
    acknowledged: std.atomic.Value(u64) = .init(0),
    fenced: std.atomic.Value(bool) = .init(false),

    fn produce(race: *Race) void {
        var payload: [120]u8 = undefined;
        while (true) {
            const lsn = race.fixture.producer.next_lsn;
            const size = lsn % payload.len;
            fill(payload[0..size], lsn);
            switch (ring_file.append(&race.fixture.producer, 2, 0, 0, payload[0..size])) {
                .ok => race.acknowledged.store(lsn, .release),
                .ring_full => std.atomic.spinLoopHint(),
                .ring_fenced => break,
                else => unreachable, // the consumer of this test is sound
            }
        }
        race.fenced.store(true, .release);
    }
};

test "a seal against appends in flight: what was acknowledged is drained" {
    var prng: std.Random.DefaultPrng = .init(11);
    for (0..60) |_| {
        var memory: Memory = undefined;
        var f = try Fixture.init(&memory);
        var race: Race = .{ .fixture = &f };
        const thread = try std.Thread.spawn(.{}, Race.produce, .{&race});
        var summary: record.Summary = undefined;
        for (0..prng.random().uintLessThan(usize, 400)) |_| {
            try testing.expectEqual(Status.ok, f.drain(capacity, &summary));
            ring_file.release(&f.consumer);
        }
        ring_file.seal(&f.consumer);
        try testing.expectEqual(Status.ok, f.drain(capacity, &summary));
        const recorded = f.consumer.next_lsn;
        thread.join();
        try testing.expect(race.fenced.load(.acquire));
        try testing.expect(race.acknowledged.load(.acquire) < recorded);
        try testing.expectEqual(Status.ring_fenced, ring_file.append(&f.producer, 1, 0, 0, ""));
    }
}
